"""What of the project needs a GPU, in parts that are run by name: `make gpu`."""
