"""Names of the recipes, in the order in which they are told."""

HEAD_RANKINGS = ("energy", "elimination", "magnitude", "taylor", "graph")
RECIPE_NAMES = (
    "kumar-hybrid", "kumar-hybrid-whitened", "vtp", "gohsp", "losparse", "svd-energy", "magnitude",
    *(f"heads-{ranking}" for ranking in HEAD_RANKINGS),
)  # fmt: skip
