"""Facts about one machine: which kernels are right on it, and which are fastest."""
