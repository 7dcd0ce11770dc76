"""What only a terminal has: the parser, a module for every command, the live display, tables."""
