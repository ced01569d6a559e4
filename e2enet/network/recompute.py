"""Activation checkpointing: forget what a part of a network computed, and compute it again in the backward pass.

Autograd keeps the input of every convolution and norm until the backward pass has used it: most of the memory of a
training step. A part that is run by `recompute` keeps only its inputs. When gradients reach it, it runs a second time,
with the same operations on the same values. Gradients are the same to the last bit if the device's operations are
deterministic. The price is this second forward pass. docs/performance.md measures both.

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

# Takes a part of a network, which is a function of tensors, and the part's inputs; returns the part's output.
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

    The parts are encoder stages, fusion nodes with their upward flow (a second block is a part of its own) and levels
    of the U-Net decoder. The setting belongs to the object: neither its arguments nor its state_dict hold it.

    Raises:
        InputError: the network is another one, which runs its parts by itself.
    """
    if not hasattr(network, "run_part"):
        raise InputError(
            f"training.checkpoint_activations=true: {type(network).__name__} keeps its activations; expected false, "
            "or network=e2enet"
        )
    network.run_part = recompute
