"""Targets, and the allocations that keep them: parsing, reach, the knapsack, and what a sampler sees of an allocation."""
