"""Names of the samplers."""

ADDITIVE = "additive"  # the engine's own
SAMPLERS = (ADDITIVE, "tpe", "nsga2", "gp", "random")  # Optuna's
