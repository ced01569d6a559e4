"""Use of the machine: processes, ranks, locks, memory and torch's flags."""
