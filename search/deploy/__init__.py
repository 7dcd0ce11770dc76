"""From a point of a run to a model folder: which point, perhaps a long fine-tune, the files and their card."""
