"""The trials of a search: asked, told, recorded in a journal or a database, and read back after any end."""
