"""Inference that multiplies active kernels only."""
