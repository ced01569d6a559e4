"""A viewer of predictions that opens from disk: scan, prediction, reference and their difference, in planes and 3D."""
