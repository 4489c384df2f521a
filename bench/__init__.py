"""Measured comparisons, a folder a question; README.md lists them."""
