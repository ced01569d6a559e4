"""Kernels and bytes of a training step, counted without a GPU: on torch's meta device, where tensors have no memory.

Every operation of torch is one kernel that reads its inputs and writes its outputs once; views and allocations cost
nothing. The fused path's operations state their kernels and bytes where they are registered
(`e2enet.network.fused.operations`). `saved` is what is still held after the forward pass, without parameters, input and
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_networks import CONTENDERS, make_contender, mask
from benchmarks.gpu_options import FULL, Work
from benchmarks.gpu_report import Report, tell

# What these write is not read before; other operations in place read what they change.
OVERWRITE = {"aten::copy_", "aten::zero_", "aten::fill_"}
FREE = {  # allocations, and views that schemas call copies or changes
    *("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided"),
    *("aten::_unsafe_view", "aten::set_"),
}
# The host waits for the device: it reads a value, or the size of a result that depends on values.
WAITS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
}


# Of a step of `FULL` in half precision: kernels, bytes forward and backward, bytes saved.
BUDGET = 420, 52e9, 100e9, 9e9


def run(work: Work, report: Report) -> None:
    """Tell kernels, bytes and what is saved for the backward pass, of a step in half precision with S = 0.8."""
    x = torch.empty(work.sizes.batch, 1, *work.sizes.patch, device="meta", dtype=torch.float16)
    rows = []
    for name in ("plain", "fused", "implicit", "plain_unet"):
        network, run_by = make_contender(name, work.sizes.network, "cpu")
        if name != "plain_unet":
            mask(network, groups=False)
        network.to("meta", torch.float16)
        forward, backward, saved = count_step(run_by, x)
        gigabytes = [value / 1e9 for value in (forward.bytes, backward.bytes, saved)]
        kernels = [forward.kernels, backward.kernels]
        report.keep(name, {"kernels": kernels, "gb": gigabytes[:2], "saved_gb": gigabytes[2]})
        waits = forward.waits + backward.waits
        numbers = [f"{value:.1f}" for value in gigabytes]
        rows.append([CONTENDERS[name], *map(str, kernels), *numbers, str(waits)])
        found = f"{sum(kernels)} kernels, {numbers[0]} + {numbers[1]} GB, {numbers[2]} GB saved"
        if name == "fused" and (work.sizes.patch, work.sizes.batch) == (FULL.patch, FULL.batch):
            most, *limits = BUDGET
            found_bytes = forward.bytes, backward.bytes, saved
            held = sum(kernels) <= most and all(own <= limit for own, limit in zip(found_bytes, limits, strict=True))
            expected = f"{most}, {limits[0] / 1e9:.0f} + {limits[1] / 1e9:.0f} GB, {limits[2] / 1e9:.0f} GB"
            report.require(CONTENDERS[name], found, f"at most {expected}", held=held)
        else:
            report.find(CONTENDERS[name], found)
    columns = "kernels, forward", "backward", "GB, forward", "backward", "GB saved", "waits"
    tell("a training step in half precision, counted", ("network", *columns), rows)


@dataclass
class Count:
    """What a part of a step costs: kernels, bytes read and written, and how often the host waits for the device."""

    kernels: int = 0
    bytes: int = 0
    waits: int = 0
    by_operation: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, kernels: int, moved: int) -> None:
        """Add an operation's kernels and bytes."""
        self.kernels += kernels
        self.bytes += moved
        entry = self.by_operation.setdefault(name, [0, 0])
        entry[0] += kernels
        entry[1] += moved


class Counter(TorchDispatchMode):
    """Counts every operation while it is entered; `held` says what is held of the storages that these made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from e2enet.network.fused.operations import TRAFFIC

        found = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in WAITS or (name == "aten::index" and _chooses_by_value(args[1])):
            self.count.waits += 1
        elif func in TRAFFIC:
            self.count.add(name, TRAFFIC[func].kernels, TRAFFIC[func].moved(found, *args))
        elif not _is_view(func) and name not in FREE:
            self.count.add(name, 1, sum(map(_bytes, _touched(func, args, kwargs or {}, found))))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for storage in (tensor.untyped_storage() for tensor in _tensors(found)):
            if storage._cdata not in given:
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    def held(self, *known: Tensor) -> int:
        """Return the bytes of storages that operations made and that still exist, without those of `known`."""
        own = {tensor.untyped_storage()._cdata for tensor in known}
        return sum(
            size for key, (reference, size) in self.storages.items() if key not in own and not reference.expired()
        )


def count_step(run: Callable[[Tensor], Any], x: Tensor) -> tuple[Count, Count, int]:
    """Return what forward and backward of a step cost, and the bytes that are saved in between.

    Args:
        run: a network in training mode on the meta device; every head's logits get a gradient.
        x: its input.
    """
    with Counter() as forward:
        logits = run(x)
    heads = list(logits) if isinstance(logits, Sequence) else [logits]
    saved = forward.held(x, *heads)
    grads = [torch.empty_like(head) for head in heads]
    with Counter() as backward:
        torch.autograd.backward(heads, grads)
    return forward.count, backward.count, saved


def _chooses_by_value(indices: Any) -> bool:
    """Return whether one of an index's tensors is a mask."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _is_view(func: Any) -> bool:
    """Return whether an operation returns a view of its input, or the input itself, without writing."""
    returned = func._schema.returns
    return bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)


def _touched(func: Any, args: Sequence[Any], kwargs: dict[str, Any], found: Any) -> Iterator[Tensor]:
    """Yield the tensors that an operation reads, and those that it writes."""
    overwritten = func._schema.name in OVERWRITE
    for index, (argument, value) in enumerate(zip(func._schema.arguments, args, strict=False)):
        if not (overwritten and index == 0) and not argument.is_out:
            yield from _tensors(value)
    for argument in func._schema.arguments:
        if argument.name in kwargs and not argument.is_out:
            yield from _tensors(kwargs[argument.name])
    yield from _tensors(found)


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor covers: an expanded axis lies in memory once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()
