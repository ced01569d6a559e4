"""The weighted mean of overlapping windows, with memory only for planes that later windows still reach.

Windows come layer by layer along the depth. A layer is as deep as a window, so only the sums of that many planes are
held, whatever the depth of the volume. A plane that the next layer does not reach is final and is returned. Its memory
is reused for a later plane (plane z is in slot z modulo the window's depth).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from e2enet.inference.windows import Corner, WindowGrid, gaussian_weights

# Block size on a CPU: a block of probabilities (2 MiB) stays in the cache until it is added.
BLOCK_VALUES = 2**19
# Left free on a GPU beside the sums, for finished planes on their way to the native grid and for other programs.
RESERVE_BYTES = 2**30


class WindowSums:
    """Sums of the windows' softmax probabilities (`sigmoid` for regions) on `device`: float32, K classes per voxel.

    Each window is added `passes` times, once for every network and mirrored copy.
    """

    def __init__(
        self, grid: WindowGrid, num_classes: int, passes: int, device: torch.device, *, sigmoid: bool = False
    ) -> None:
        depth, height, width = grid.patch
        self.device = device
        self._sigmoid = sigmoid
        self._grid, self._depth, self._passes = grid, depth, passes
        # Planes are the first axis, so that a finished plane is contiguous.
        self._sums = torch.zeros(depth, num_classes, *grid.shape[1:], device=device)
        self._weights = gaussian_weights(grid.patch).to(device)
        self._layer_weights = torch.zeros(depth, *grid.shape[1:], device=device)
        for corner in grid.layer(0):
            self._layer_weights[grid.box(corner)] += self._weights
        self._block = depth if device.type != "cpu" else max(1, BLOCK_VALUES // (num_classes * height * width))

    def add(self, logits: Tensor, corner: Corner, mirrored: Sequence[int] = ()) -> None:
        """Add the window at `corner`: its logits (K, *patch), computed with the window mirrored along these axes."""
        _, rows, columns = self._grid.box(corner)
        axes = [axis + 1 for axis in mirrored]
        for first, last in self._blocks(corner[0]):
            source = slice(self._depth - last, self._depth - first) if 0 in mirrored else slice(first, last)
            part = logits[:, source]
            probabilities = part.float().sigmoid() if self._sigmoid else part.softmax(dim=0, dtype=torch.float32)
            if axes:
                probabilities = probabilities.flip(axes)
            slot = (corner[0] + first) % self._depth
            sums = self._sums[slot : slot + last - first, :, rows, columns].transpose(0, 1)
            sums.addcmul_(probabilities, self._weights[first:last])

    def take(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield the mean probabilities (K, H, W) of the final planes `start` to `stop`; reset their memory."""
        for plane in range(start, stop):
            sums = self._sums[plane % self._depth]
            # Sum over the layers that reach the plane; all layers have the weights of the first.
            weights = sum(
                self._layer_weights[plane - first] for first in self._grid.starts[0] if 0 <= plane - first < self._depth
            )
            mean = sums / (weights * self._passes)
            sums.zero_()
            yield mean

    def _blocks(self, start: int) -> Iterator[tuple[int, int]]:
        """Cut a window's planes 0..depth into ranges (first, last) in consecutive slots."""
        first = 0
        while first < self._depth:
            to_the_end = self._depth - (start + first) % self._depth
            last = min(first + self._block, first + to_the_end, self._depth)
            yield first, last
            first = last


def forget_earlier(device: torch.device) -> None:
    """Reset the GPU's peak memory, so that `device_of_sums` reads that of the next case or of a smaller batch."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_of_sums(grid: WindowGrid, num_classes: int, device: torch.device) -> torch.device:
    """Return the network's device if the sums fit beside the network, else the CPU.

    The network must have run once since `forget_earlier`. Memory that torch's allocator holds from earlier cases counts
    as free, except for the network's own peak.
    """
    if device.type == "cpu":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    height, width = grid.shape[1:]
    needed = 4 * grid.patch[0] * (num_classes + 1) * height * width
    return device if needed + RESERVE_BYTES <= free else torch.device("cpu")
