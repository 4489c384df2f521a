"""The shipped demo model: weights (folders), its caption language and its quality critic."""
