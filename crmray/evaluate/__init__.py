"""Figures, calibration, reasons, comparisons, model cards and pages; arithmetic on arrays, no Ray, no files."""
