"""Training of a quantized model, so that it predicts as its original does."""
