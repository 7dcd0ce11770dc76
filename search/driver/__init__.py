"""A launch from its options to its results: what is feasible, the loop, and those who watch it."""
