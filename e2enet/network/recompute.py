"""Activation checkpointing: forget what a part of a network computed, and compute it again in the backward pass.

Autograd keeps every convolution's input and every norm's until the backward pass has used them: most of the memory of
a training step. A part that is run by `recompute` keeps its inputs alone; when gradients reach it, it is run a second
time, by the same operations on the same values, so that gradients are the same to the last bit (where the device's
operations are). The price is that second forward pass. docs/performance.md measures both.

A network hands its parts a `Run`, by default `run_once`:

    >>> def forward(self, x: Tensor, run: Run = run_once) -> Tensor:
    ...     for stage in self.stages:
    ...         x = run(stage, x)
    ...     return x
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from e2enet.common.errors import InputError

# Takes a part of a network, a function of tensors, and its inputs; gives what it makes of them.
Run = Callable[..., Tensor]


def run_once(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run a part and let autograd keep what its backward pass needs."""
    return part(*inputs)


def recompute(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run a part, and run it again in the backward pass: until then only its inputs are kept.

    The part must do the same both times: no random numbers, no counters. Autocast is as it was the first time.
    """
    if not torch.is_grad_enabled():
        return part(*inputs)
    output: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output


def checkpoint_activations(network: Any) -> None:
    """Let an `E2ENet` recompute its activations from now on, in every pass with gradients.

    Parts are an encoder's stage, a fusion node with its upward flow (its second block by itself) and a level of the
    U-Net decoder. It is a setting of the object: neither its arguments nor its state_dict know of it.

    Raises:
        InputError: another network, which runs its parts by itself.
    """
    if not hasattr(network, "run_part"):
        raise InputError(
            f"training.checkpoint_activations=true: {type(network).__name__} keeps its activations; expected false, "
            "or network=e2enet"
        )
    network.run_part = recompute
