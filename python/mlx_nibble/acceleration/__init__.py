"""Puts a model's quantized layers on our kernels, and takes them off again."""
