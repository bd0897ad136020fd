"""GGUF files from strangers: every value is checked before it is used."""
