"""One module for every command; each imports what it runs when it is run."""
