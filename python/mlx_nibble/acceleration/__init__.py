"""Put a model's quantized layers on our kernels, and take them off again."""
