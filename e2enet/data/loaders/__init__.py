"""Patches and whole cases, drawn, read and handed to the trainer."""
