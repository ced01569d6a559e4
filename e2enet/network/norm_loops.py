"""The compiled loops of instance norm with LeakyReLU, over rows (voxels, C): channels-last memory.

Each works on the rows start..stop; the inner loops run over the channels and become vector instructions. Sums are
float64 over blocks of 512 voxels that were added up in the rows' own type: neither a large mean (it is subtracted
first) nor a large number of voxels costs digits. The gradient looks at the sign of what the activation saw, computed
anew from x, so that the output need not be kept.
"""

from __future__ import annotations

import numpy as np

from e2enet.network.compiled import compiled


@compiled
def add_moments(x, centre, start, stop, first, second):
    """Add to `first` and `second` (C,) the sums of x - centre and of its square."""
    channels = x.shape[1]
    sum_1, sum_2 = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    for block in range(start, stop, 512):
        sum_1[:] = 0
        sum_2[:] = 0
        for row in range(block, min(block + 512, stop)):
            for c in range(channels):
                centred = x[row, c] - centre[c]
                sum_1[c] += centred
                sum_2[c] += centred * centred
        for c in range(channels):
            first[c] += sum_1[c]
            second[c] += sum_2[c]


@compiled
def normalise(x, mean, scale, bias, slope, start, stop, y):
    """y = leaky_relu((x - mean) * scale + bias)."""
    channels = x.shape[1]
    for row in range(start, stop):
        for c in range(channels):
            value = (x[row, c] - mean[c]) * scale[c] + bias[c]
            y[row, c] = value if value > 0 else value * slope


@compiled
def add_gradient_sums(grad, x, mean, scale, bias, slope, start, stop, sum_g, sum_gx):
    """Add to (C,) the sums of g and of g * (x - mean), g being the gradient before the activation."""
    channels = x.shape[1]
    sum_1, sum_2 = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    for block in range(start, stop, 512):
        sum_1[:] = 0
        sum_2[:] = 0
        for row in range(block, min(block + 512, stop)):
            for c in range(channels):
                centred = x[row, c] - mean[c]
                g = grad[row, c] if centred * scale[c] + bias[c] > 0 else grad[row, c] * slope
                sum_1[c] += g
                sum_2[c] += g * centred
        for c in range(channels):
            sum_g[c] += sum_1[c]
            sum_gx[c] += sum_2[c]


@compiled
def input_gradient(grad, x, mean, scale, bias, slope, constant, by_x, start, stop, grad_x):
    """grad_x = g * scale + constant + (x - mean) * by_x, g being the gradient before the activation."""
    channels = x.shape[1]
    for row in range(start, stop):
        for c in range(channels):
            centred = x[row, c] - mean[c]
            g = grad[row, c] if centred * scale[c] + bias[c] > 0 else grad[row, c] * slope
            grad_x[row, c] = g * scale[c] + constant[c] + centred * by_x[c]
