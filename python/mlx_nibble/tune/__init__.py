"""What ``nibble tune`` does: which products, their samples, the choice."""
