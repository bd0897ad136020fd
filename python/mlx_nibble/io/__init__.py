"""Files: GGUF in, MLX checkpoint folders out, and the user's cache."""
