"""Fewer patch tokens from block to block: how they are matched and merged, and the blocks that do it."""
