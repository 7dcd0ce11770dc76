"""The folder that a compressed model lives in: written, described, and read back without trust."""
