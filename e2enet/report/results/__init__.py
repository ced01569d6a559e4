"""Results of runs, read from their folders."""
