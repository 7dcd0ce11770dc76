"""What proposes the next trial: the engine's own sampler and Optuna's; `registry` lists them."""
