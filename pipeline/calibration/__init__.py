"""Calibration: thresholds of policies, taken from the signals that a pilot job stored."""
