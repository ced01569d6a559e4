"""What whoever runs all of an E2ENet's operations by its own code cannot do, and says.

Autograd and torch's tools see such a pass as a single operation.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from e2enet.network.e2enet import check_input
from e2enet.network.layers import Triple
from e2enet.network.operations import refuse_tools


class Shaped(Protocol):
    """What tells the shape of a network's input."""

    in_channels: int
    strides: list[Triple]


def check_call(runs: str, network: Shaped, x: Tensor, *, trains: bool) -> None:
    """Check a pass before it begins.

    Args:
        runs: its name, for messages.
        network: tells the input's channels and strides.
        x: the input.
        trains: whether the pass has gradients. It has none of its input.

    Raises:
        RuntimeError: a tool of torch would look into the pass.
        ValueError: the input has the wrong shape, or requires a gradient.
    """
    refuse_tools(runs)
    check_input(x, network.in_channels, network.strides)
    if trains and x.requires_grad:
        raise ValueError(f"{runs} gives its input no gradient, and this one asks for it; run the network itself")


def check_backward(runs: str, kept: object) -> None:
    """Check a backward pass before it begins.

    Raises:
        RuntimeError: a gradient of gradients is wanted, or nothing is `kept` (None) of the forward pass.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"create_graph=True: gradients of {runs} cannot be differentiated; run the network itself")
    if kept is None:
        raise RuntimeError("going backward a second time: what the forward pass kept was let go the first time")
