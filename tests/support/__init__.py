"""Helpers that the tests share: the oracle, tolerances, tiny models, writers."""
