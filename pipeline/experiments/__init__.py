"""Experiments: sweeps over policies and their numbers, with controls and one report."""
