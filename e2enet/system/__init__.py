"""Processes, ranks, locks, memory and torch's flags: how a program uses its machine."""
