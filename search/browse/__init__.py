"""Servers of what a run holds: the live page, and optuna-dashboard on a copy."""
