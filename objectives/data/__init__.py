"""The splits: which images are in which, in which order their classes are, and the batches made of them."""
