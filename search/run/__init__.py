"""A run directory: its files, its tables, what it says of itself, and whether a launch may continue it."""
