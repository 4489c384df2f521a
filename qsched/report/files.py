"""The names of what a study leaves: in its folder, and among its artifacts."""

PAGE = "report.html"
NUMBERS = "report.json"
IMAGES = "images.png"
COURSE = "history.png"

PREVIEW = "preview.png"
PREVIEW_PAGE = "preview.html"

COMPARISON = "compare.html"

COEFFICIENTS = "coefficients.json"
SCHEDULER = "scheduler"
CONFIG = f"{SCHEDULER}/scheduler_config.json"
CARD = "README.md"

HELD_OUT = "held-out.png"
"""The study's artifact with the pictures of its last validation."""

LIBRARY = "diffusers"
"""The hub's name of what loads an exported folder."""
