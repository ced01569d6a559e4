"""The engine's debug mode, E2ENET_ENGINE_CHECKS=1: no loop reads or writes outside of its volumes unseen.

The compiled loops work on raw addresses. In this mode `bounds` checks all that a loop is given before each call, and
guard values around volumes and buffers are checked after it. Volumes are filled with the guard value too, so a voxel
that nobody wrote is found. numba checks the indices of arrays (`network.compiled`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from e2enet.network.engine.vector_code import LANES
from e2enet.network.loop_cache import CHECK_BOUNDS

if TYPE_CHECKING:
    from e2enet.network.engine.lazy_volumes import LazyVolumes

ON = CHECK_BOUNDS
GUARD = 1024  # values before and after a volume. Loops may read, not write, 256 values behind a tile
PATTERN = np.uint32(0x7FC0DEAD)  # as float32: NaN, of a kind that no arithmetic makes from numbers

_whole: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()  # guarded memory by its id
_current = threading.local()


class BoundsError(IndexError):
    """A loop of the engine would reach outside of its volumes, or has done so. A fault of the engine, not of data."""


def named(name: str) -> AbstractContextManager[None]:
    """Let errors in the block name this operation of a network."""
    return _named(name) if ON else nullcontext()


@contextmanager
def _named(name: str) -> Iterator[None]:
    before, _current.name = getattr(_current, "name", None), name
    try:
        yield
    finally:
        _current.name = before


def watch(
    loop: Callable[..., None],
    *reads: Sequence[LazyVolumes],
    writes: Sequence[LazyVolumes] = (),
    plane: tuple[int, int] = (1, 1),
) -> Callable[..., None]:
    """Return a compiled loop, in the debug mode with checks before and after each call.

    Args:
        loop: one that `bounds.CHECKS` has by its name.
        reads: the volumes that the loop reads, for each of its sources.
        writes: the volumes that it writes.
        plane: rows and columns of pixels that an output reads.
    """
    if not ON:
        return loop
    from e2enet.network.engine.bounds import CHECKS

    label = f"{getattr(_current, 'name', None) or 'an operation'}, {loop.__name__}"
    check = CHECKS[loop.__name__]

    def watched(*arguments: Any) -> None:
        try:
            check(reads, writes, plane, *arguments)
            loop(*arguments)
            written = [memory for volumes in writes for memory in volumes.memory]
            require_guards([*(part for part in arguments if isinstance(part, np.ndarray)), *written])
        except IndexError as error:  # numba's too
            raise BoundsError(f"{label}: {error}") from error

    return watched


def guarded_volume(shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 memory that is aligned to vectors and full of guard values, as its surroundings are."""
    count = int(np.prod(shape))
    whole = np.full(count + LANES + 2 * GUARD, PATTERN, np.uint32).view(np.float32)
    assert isinstance(whole.base, np.ndarray)
    _whole[id(whole.base)] = whole.base
    start = _start(whole.base)
    return whole[start : start + count].reshape(shape)


def _start(whole: np.ndarray) -> int:
    """Return where in guarded memory the volume begins."""
    return GUARD + -(whole.ctypes.data // 4 + GUARD) % LANES


def require_guards(arrays: Sequence[np.ndarray]) -> None:
    """Raise BoundsError if a guard value around one of the guarded arrays has changed."""
    for array in arrays:
        whole = array.base
        if not isinstance(whole, np.ndarray) or _whole.get(id(whole)) is not whole:
            continue
        start, count = _start(whole), len(whole) - LANES - 2 * GUARD
        for first, part in ((-start, whole[:start]), (count, whole[start + count :])):
            changed = np.flatnonzero(part != PATTERN)
            if len(changed):
                place = first + int(changed[0])
                raise BoundsError(f"it wrote value {place} of memory of {count} values, an array of {array.shape}")


def require_written(volumes: LazyVolumes, channels: np.ndarray) -> None:
    """Raise BoundsError if a voxel of the channels (bool) still has the guard value; only in the debug mode."""
    if not ON:
        return
    name = getattr(_current, "name", None) or "an operation"
    for number, values in enumerate(volumes.volumes()):
        channel, left = number % len(channels), np.argwhere(values.view(np.uint32) == PATTERN)
        if channels[channel] and len(left):
            row, column, voxel = left[0].tolist()
            raise BoundsError(
                f"{name}: nobody wrote {len(left)} voxels of output channel {channel}, or they were made of such; the "
                f"first is slice {voxel}, row {row}, column {column} of {volumes.size}"
            )


def require_volumes(what: str, addresses: np.ndarray, volumes: Sequence[LazyVolumes]) -> None:
    """Raise BoundsError unless each address (B, C), or (rows,), is the start of a volume in the memory of `volumes`."""
    starts = np.concatenate([_starts(memory, one.size) for one in volumes for memory in one.memory])
    wrong = np.argwhere(~np.isin(addresses, starts))
    if len(wrong) == 0:
        return
    place, channel = tuple(wrong[0]), int(wrong[0][-1])
    text = "which has no volumes of this size"
    if len(starts):
        distance = int(addresses[place]) - starts.astype(object)
        text = f"{min(distance, key=abs)} bytes from the nearest volume of {volumes[0].size} there"
    raise BoundsError(f"{what} channel {channel} lies outside of its memory, {text}")


def _starts(memory: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Return the addresses of the volumes (H, W, D) in an array of one or of several, (.., H, W, D)."""
    depth, height, width = size
    if memory.dtype != np.float32 or memory.shape[-3:] != (height, width, depth) or not memory.flags.c_contiguous:
        return np.zeros(0, np.int64)
    count = memory.size // max(1, depth * height * width)
    return memory.ctypes.data + 4 * depth * height * width * np.arange(count, dtype=np.int64)
