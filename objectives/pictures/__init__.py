"""How picture files are found, opened, checked and turned into images."""
