"""Densities of layers after Erdos and Renyi: small layers get a larger share of the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping


def erdos_renyi_kernel(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return a density per layer proportional to (dim0 + dim1 + sum of kernel sizes) / (product of all sizes).

    The factor makes the active kernels of all layers `density` of all kernels. Layers that would exceed 1 become dense,
    and the others share the remaining kernels (Evci et al. 2020, Appendix A).
    """
    kernels = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        wanted = density * sum(kernels.values()) - sum(kernels[name] for name in dense)
        free = [name for name in shapes if name not in dense]
        if not free:
            return dict.fromkeys(shapes, 1.0)
        factor = wanted / sum(raw[name] * kernels[name] for name in free)
        full = {name for name in free if factor * raw[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense |= full
