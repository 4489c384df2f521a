"""Tests by room, as the package has them; `support` holds the fakes and the fault harness."""
