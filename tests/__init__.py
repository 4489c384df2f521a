"""The tests, by room. A package, because some of what is installed has a `tests` of its own."""
