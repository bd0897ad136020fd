"""Measures of a model: loss, agreement, bytes."""
