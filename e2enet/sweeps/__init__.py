"""Sweeps that survive: jobs known by their configuration, run once each, whatever is killed in between."""
