"""The compiled loops over channels-last memory: instance norm with LeakyReLU, and max pooling with kernel = stride.

The norm's loops work on the rows start..stop of (voxels, C), the pooling's on the planes start..stop of the coarse
volume (D, H, W, C). The inner loops run over the channels and become vector instructions.

Norm: blocks of 512 voxels are summed in the rows' own dtype, and the blocks in float64. Neither a large mean
(subtracted first) nor a large number of voxels costs digits. The gradient needs the sign of the activation's input and
computes it again from x, so the output need not be kept.

Pooling: the voxels of a window are numbered in the order depth, height, width.
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


@compiled
def pool(x, sd, sh, sw, y, largest, start, stop):
    """Set y to the largest value of each window of x, and `largest` to the number of its voxel.

    Ties go to the first voxel. NaN counts as the largest.
    """
    _, height, width, channels = y.shape
    for d in range(start, stop):
        for h in range(height):
            for w in range(width):
                best, number = y[d, h, w], largest[d, h, w]
                voxel = x[d * sd, h * sh, w * sw]
                for c in range(channels):
                    best[c], number[c] = voxel[c], 0
                for k in range(1, sd * sh * sw):
                    voxel = x[d * sd + k // (sh * sw), h * sh + k // sw % sh, w * sw + k % sw]
                    for c in range(channels):
                        value, known = voxel[c], best[c]
                        take = value > known or value != value
                        best[c] = value if take else known
                        number[c] = k if take else number[c]


@compiled
def unpool(x, sd, sh, sw, y, largest, start, stop):
    """x = y at each window's largest voxel, else 0: the inverse of `pool`."""
    _, height, width, channels = y.shape
    for d in range(start, stop):
        for h in range(height):
            for w in range(width):
                value, number = y[d, h, w], largest[d, h, w]
                for k in range(sd * sh * sw):
                    voxel = x[d * sd + k // (sh * sw), h * sh + k // sw % sh, w * sw + k % sw]
                    for c in range(channels):
                        voxel[c] = value[c] if number[c] == k else 0
