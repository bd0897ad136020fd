"""How fast things are on this machine, and whether that has changed."""
