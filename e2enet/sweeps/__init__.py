"""Sweeps that survive interruptions: a job is identified by its configuration and is run to its end once."""
