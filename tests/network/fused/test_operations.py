"""The fused operations as torch sees them: sizes without values, and the same arguments everywhere."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from e2enet.network.fused import cpu, operations, operations_implicit, reference, reference_implicit
from e2enet.network.fused.network import FusedNetwork
from tests.network.fused.test_fused_network import image, make

Call = tuple[Any, tuple[Any, ...], list[Tensor]]


def to_meta(arguments: Any) -> Any:
    """Return arguments with their tensors on the meta device."""
    return tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, arguments)


def order(x: Tensor) -> list[int]:
    """Return the strides of the axes that have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in operations.TRAFFIC:
            self.calls.append((func, args, tree_leaves(found)))
        return found


def calls_of(dtype: torch.dtype) -> list[Call]:
    """Return the operations of two steps, fused and implicit."""
    model = make(dtype)
    with Recorder() as recorder:
        for implicit in (False, True):
            logits = FusedNetwork(model, implicit=implicit)(image(model))
            torch.autograd.backward(logits, [torch.ones_like(one) for one in logits])
    return recorder.calls


def test_sizes_without_values_are_those_with_values() -> None:
    for dtype in (torch.float32, torch.float64):
        calls = calls_of(dtype)
        assert {func for func, _, _ in calls} == set(operations.TRAFFIC)
        for func, args, found in calls:
            for own, expected in zip(tree_leaves(func(*to_meta(args))), found, strict=True):
                assert own.device.type == "meta"
                assert (own.shape, own.dtype, order(own)) == (expected.shape, expected.dtype, order(expected)), func


def test_the_bytes_stated_are_at_most_those_of_all_tensors() -> None:
    for func, args, found in calls_of(torch.float32):
        stated = operations.TRAFFIC[func].moved(found[0] if len(found) == 1 else found, *args)
        everything = [leaf for leaf in tree_leaves((args, found)) if isinstance(leaf, Tensor)]
        written = operations.nbytes(*found)
        moments = found[0].numel() // 8 if func is operations_implicit.CONVOLVE.default else 0  # of its tiles
        assert written < stated <= operations.nbytes(*everything) + moments, func


def test_every_operation_has_a_reference_and_a_launcher_of_the_same_arguments(interpreted: Any, implicit: Any) -> None:
    assert len(operations.TRAFFIC) == 11
    for func in operations.TRAFFIC:
        name = func._schema.name.removeprefix("e2enet::fused_")
        names = [argument.name for argument in func._schema.arguments]
        own = reference if hasattr(reference, name) else reference_implicit
        started = interpreted if own is reference else implicit
        for module in (own, started, *([cpu] if own is reference else [])):
            assert list(inspect.signature(getattr(module, name)).parameters) == names
