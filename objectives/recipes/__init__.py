"""Baselines of the literature: each makes a compressed model of its own; `registry` lists them."""
