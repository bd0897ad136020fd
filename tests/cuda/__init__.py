"""Kernels and plans for CUDA, as far as a machine without a GPU can test them."""
