"""Mirrored copies of windows in batches.

One window seldom fills a GPU, and eight mirrored copies are there anyway: as many of them make a batch as its memory
holds. On a CPU a batch is no faster by torch (docs/performance.md), and takes more memory. The engine's threads take
whole samples of a batch, so it says how many it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from e2enet.network.engine.select import samples_at_once
from e2enet.system.memory import is_out_of_memory

Mirrored = tuple[int, ...]


def least_at_once(networks: Sequence[nn.Module], patch_size: Sequence[int], device: torch.device) -> int:
    """Return how many windows, mirrored copies included, to give networks at once: the least that one of them wants."""
    return min(samples_at_once(network, patch_size) for network in networks) if device.type == "cpu" else 1


def copies_at_once(device: torch.device, copies: int, samples: int = 1) -> int:
    """Return how many of a window's mirrored copies to try in one batch; samples: of `least_at_once`."""
    return copies if device.type == "cuda" else min(copies, samples)


class MirroredPasses:
    """Runs networks on mirrored copies of windows, several copies in one batch.

    If memory runs out, or the first batch leaves too little for the sums of windows, it goes on with half as many.

    Args:
        mirrored: the subsets of (0, 1, 2) = (D, H, W) along which copies are mirrored.
        device: of networks and windows.
        amp_dtype: the dtype of autocast, None for float32.
        copies: how many to try in one batch.
        leaves_room: number of classes -> whether the memory left suffices; called once after a batch.
        retry: called before a batch is tried again with fewer copies.
    """

    def __init__(
        self,
        mirrored: Sequence[Mirrored],
        device: torch.device,
        amp_dtype: torch.dtype | None,
        copies: int,
        leaves_room: Callable[[int], bool],
        retry: Callable[[], None],
    ) -> None:
        self.mirrored, self.device, self.amp_dtype = list(mirrored), device, amp_dtype
        self.copies = copies
        self._leaves_room, self._retry = leaves_room, retry
        self._settled = False

    def run(self, network: nn.Module, windows: Tensor) -> Iterator[tuple[Mirrored, Tensor]]:
        """Yield (axes, logits (B, K, *patch)) for each mirrored copy of the windows (B, C, *patch), still mirrored."""
        done = 0
        while done < len(self.mirrored):
            chosen = self.mirrored[done : done + self.copies]
            logits = self._try(network, windows, chosen)
            if logits is None:
                continue
            done += len(chosen)
            yield from zip(chosen, logits.split(len(windows)), strict=True)

    def _try(self, network: nn.Module, windows: Tensor, chosen: list[Mirrored]) -> Tensor | None:
        """Return the logits of a batch of copies, one after the other; None if fewer must be tried."""
        logits: Tensor | None = None
        try:
            batch = [windows.flip([axis + 2 for axis in axes]) if axes else windows for axes in chosen]
            x = torch.cat(batch) if len(batch) > 1 else batch[0]
            own = next((parameter.dtype for parameter in network.parameters()), x.dtype)
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                logits = network(x.to(own))  # of a run in float64, say
        except Exception as error:
            if len(chosen) == 1 or not is_out_of_memory(error):
                raise
        if logits is not None and (self._settled or len(chosen) == 1 or self._leaves_room(logits.shape[1])):
            self._settled = True
            return logits
        # Here the error, which keeps the failed batch's memory, is gone.
        self.copies = (len(chosen) + 1) // 2
        del logits
        self._retry()
        return None


def stack_on(device: torch.device, parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of the host on a device. A GPU copies them from pinned memory, while the host goes on."""
    if device.type != "cuda":
        return torch.stack(list(parts)).to(device)
    pinned = torch.empty(len(parts), *parts[0].shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.stack(list(parts), out=pinned).to(device, non_blocking=True)
