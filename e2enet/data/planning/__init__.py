"""From a dataset to its plan: fingerprint, spacing, patch, strides, batch and normalisation."""
