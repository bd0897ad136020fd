"""Whole models: calibrate, quantize, evaluate and measure them, a layer at a time."""
