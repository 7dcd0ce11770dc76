"""What leaves the project: model files in several formats, checked after they are read back, timed and used to classify."""
