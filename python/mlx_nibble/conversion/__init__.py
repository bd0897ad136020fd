"""Model conversion: plans, calibration, imports of other formats."""
