"""The compiled loops of max pooling with kernel = stride, over volumes (D, H, W, C): channels-last memory.

Each works on the planes start..stop of the coarse volume; the inner loops run over the channels and become vector
instructions. Voxels of a window are numbered in the order of depth, height, width.
"""

from __future__ import annotations

from e2enet.network.compiled import compiled


@compiled
def pool(x, sd, sh, sw, y, largest, start, stop):
    """y = the largest value of each window of x, `largest` the number of its voxel: the first of several, any NaN."""
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
def add_unpooled(grad, sd, sh, sw, largest, beside, total, start, stop):
    """total = beside + grad at each window's largest voxel."""
    _, height, width, channels = grad.shape
    for d in range(start, stop):
        for h in range(height):
            for w in range(width):
                above, number = grad[d, h, w], largest[d, h, w]
                for k in range(sd * sh * sw):
                    z, y, x = d * sd + k // (sh * sw), h * sh + k // sw % sh, w * sw + k % sw
                    out, other = total[z, y, x], beside[z, y, x]
                    for c in range(channels):
                        out[c] = other[c] + (above[c] if number[c] == k else 0)
