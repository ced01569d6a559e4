"""A training step that moves few bytes: norm, activation, shift and concatenation are applied by whoever reads.

What a convolution wrote stays as it is. The next convolution's input is written once, from the sources as they are
(`prepare`); the statistics of a norm are taken once, of what the convolution wrote; the backward pass makes every input
again. Autograd keeps nothing but what convolutions wrote. Torch (cuDNN, oneDNN) computes the convolutions. The kernels
around them are written in Triton for GPUs, as compiled loops for CPUs, and in torch for all other devices.
"""
