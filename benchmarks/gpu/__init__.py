"""Everything of the project that needs a GPU, in parts that are run by name: `make gpu`, or `python -m gpu` from benchmarks/."""
