"""The dense model: which one, where its weights come from, and why they do not fit where they do not."""
