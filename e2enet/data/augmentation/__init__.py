"""What happens to a training patch: rotation, scaling, intensities, mirroring."""
