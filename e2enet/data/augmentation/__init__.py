"""Augmentation of training patches: rotation, scaling, intensities, mirroring."""
