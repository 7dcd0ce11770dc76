"""One module a part: what it measures. Imported in the process of a unit alone."""
