"""Measures speed on this machine, and changes of it."""
