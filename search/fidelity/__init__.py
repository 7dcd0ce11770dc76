"""Whether figures can be believed: the audit of the short fine-tune, and what is odd about the dense model."""
