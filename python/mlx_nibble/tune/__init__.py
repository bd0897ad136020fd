"""The work of ``nibble tune``: products, their samples, and the choice."""
