"""Packed weights: of a fusion layer its active kernels alone, for files that hold a trained network and nothing else.

A state dict has a fusion layer's weight (dim 0, dim 1, k_d, k_h, k_w) as `<name>.weight` beside its mask (dim 0,
dim 1), bool, as `<name>.kernel_mask`. Packed, the weight is (active, k_d, k_h, k_w): the kernels that the mask has
active, in the order of `mask.nonzero()`; the others are zero. It has one dimension less than the network's, which is
how the two are told apart. Masks and all other tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WEIGHT, MASK = ".weight", ".kernel_mask"
# Larger kernels are not packed. A network of zeros then takes at most 2 KiB of float32 for each byte of a mask, which
# a file does hold: it cannot ask for much more memory than its own size.
MAX_VALUES = 512


def pack_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the weights of its fusion layers packed, whatever prefix its names have.

    Other tensors are those of `state`, not copies.
    """
    packed = dict(state)
    for name, mask in state.items():
        weight = name.removesuffix(MASK) + WEIGHT
        if name.endswith(MASK) and weight in state and state[weight].shape[2:].numel() <= MAX_VALUES:
            packed[weight] = state[weight][mask]
    return packed


def packed_weights(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of packed weights and of their masks: {`<name>.weight`: `<name>.kernel_mask`}.

    Args:
        state: tensors, packed or not.
        expected: the network's own state dict, of which shapes alone are read; it may be on the device `meta`.
    """
    pairs = {name.removesuffix(MASK) + WEIGHT: name for name in expected if name.endswith(MASK)}
    return {
        weight: mask
        for weight, mask in pairs.items()
        if weight in state and state[weight].ndim == expected[weight].ndim - 1
    }


def packing_problems(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return what keeps packed weights from being unpacked, a line for each layer; nothing is allocated.

    A mask that is missing, or has another shape than the network's, is named for itself wherever weights are compared
    with a network; here it is left out.
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
    """Return a state dict with its packed weights as the network has them: zero where the mask has no kernel.

    The opposite of `pack_kernels`, for one without `packing_problems` and with the network's masks. Weights get the
    dtype that `expected` says, so that they take no more memory than the network's.
    """
    unpacked = dict(state)
    for name, mask in packed_weights(state, expected).items():
        unpacked[name] = torch.zeros(expected[name].shape, dtype=expected[name].dtype, device=state[name].device)
        unpacked[name][state[mask]] = state[name].to(expected[name].dtype)
    return unpacked
