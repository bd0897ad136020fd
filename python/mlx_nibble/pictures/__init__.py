"""Draws measurements, in one style; needs matplotlib."""
