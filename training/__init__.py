"""How the demo model that ships with qsched was trained: `python -m training all`."""
