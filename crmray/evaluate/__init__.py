"""Figures, calibration, reasons, comparisons and model cards; arithmetic on arrays, no Ray, no files."""
