"""Model conversion: plans, calibration, and imports of other formats."""
