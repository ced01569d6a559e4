"""Packed weights: only the active kernels of fusion layers, for files that hold a trained network and nothing else.

A state dict holds a fusion layer's weight (dim 0, dim 1, k_d, k_h, k_w) as `<name>.weight` and its bool mask
(dim 0, dim 1) as `<name>.kernel_mask`. The packed weight is (active, k_d, k_h, k_w): the active kernels in the order of
`mask.nonzero()`. All others are zero. A packed weight has one dimension less than the network's, which tells the two
apart. Masks and all other tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WEIGHT, MASK = ".weight", ".kernel_mask"
# Larger kernels are not packed. A file holds every byte of its masks, and each byte unpacks to at most 2 KiB of
# float32: the file's own size bounds the memory that it can ask for.
MAX_VALUES = 512
DIMENSIONS = 5  # of a weight that is not packed


def pack_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the weights of its fusion layers packed. Its names may have any prefix.

    Other tensors are those of `state`, not copies. Weights that are packed already stay as they are.
    """
    packed = dict(state)
    for name, mask in state.items():
        weight = name.removesuffix(MASK) + WEIGHT
        if not name.endswith(MASK) or weight not in state:
            continue
        if state[weight].ndim == DIMENSIONS and state[weight].shape[2:].numel() <= MAX_VALUES:
            packed[weight] = state[weight][mask]
    return packed


def packed_weights(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of packed weights and of their masks: {`<name>.weight`: `<name>.kernel_mask`}.

    Args:
        state: tensors, packed or not.
        expected: the network's own state dict. Only shapes are read, so it may be on the `meta` device.
    """
    pairs = {name.removesuffix(MASK) + WEIGHT: name for name in expected if name.endswith(MASK)}
    return {
        weight: mask
        for weight, mask in pairs.items()
        if weight in state and state[weight].ndim == expected[weight].ndim - 1
    }


def packing_problems(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return why packed weights cannot be unpacked, a line for each layer; nothing is allocated.

    Masks that are missing or have another shape than the network's are skipped: every comparison of weights with a
    network reports them.
    """
    problems = []
    for name, mask_name in packed_weights(state, expected).items():
        shape, kernel, mask = tuple(state[name].shape), expected[name].shape[2:], state.get(mask_name)
        if mask is None or mask.shape != expected[mask_name].shape:
            continue
        if kernel.numel() > MAX_VALUES:
            problems.append(f"{name} is packed, with kernels of {kernel.numel()} values; at most {MAX_VALUES} expected")
        elif mask.dtype != torch.bool:
            problems.append(f"{mask_name} is of {mask.dtype}, bool expected")
        elif shape != (int(mask.sum()), *kernel):
            wanted = (int(mask.sum()), *kernel)
            problems.append(f"{name} has shape {shape}, the active kernels of its mask {wanted}")
    return problems


def unpack_kernels(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with its packed weights in the network's shapes; inactive kernels are zero.

    The inverse of `pack_kernels`. `state` must have no `packing_problems` and must hold the network's masks. Weights
    get the dtypes of `expected`, so they take no more memory than the network's.
    """
    unpacked = dict(state)
    for name, mask in packed_weights(state, expected).items():
        unpacked[name] = torch.zeros(expected[name].shape, dtype=expected[name].dtype, device=state[name].device)
        unpacked[name][state[mask]] = state[name].to(expected[name].dtype)
    return unpacked
