"""Class probabilities of a whole image from overlapping windows, mirrored copies and several networks.

They are computed plane by plane. 16 classes of 512 x 512 x 400 voxels would take 6.7 GB; only the planes that later
windows still reach are held (`window_sums.WindowSums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.inference.mirroring import MirroredPasses, copies_at_once, least_at_once, stack_on
from e2enet.inference.window_sums import WindowSums, device_of_sums, forget_earlier
from e2enet.inference.windows import WindowGrid, in_batches, mirror_subsets, pad_to_patch

HALF = "; numbers above 65504 are infinite in float16, precision=bf16 and precision=32 hold larger ones"


class NotFiniteError(InputError):
    """A network's logits are NaN or infinite: their classes would be meaningless."""


@torch.inference_mode()
def predict_planes(
    networks: Sequence[nn.Module],
    image: Tensor | np.ndarray,
    patch_size: Sequence[int],
    *,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
    on_window: Callable[[int], None] | None = None,
    sigmoid: bool = False,
) -> Iterator[Tensor]:
    """Yield the softmax probabilities of a preprocessed image (C, D, H, W): D planes (K, H, W), float32, in order.

    Windows overlap with Gaussian weights (sigma = patch / 8).

    Args:
        networks: in eval mode on `device`, each returning logits (B, K, *patch_size); their probabilities
            are averaged.
        patch_size: in voxels; a smaller image is padded with zeros on both sides.
        step: distance of neighbouring windows as a share of the patch, in (0, 1].
        mirror_axes: among (0, 1, 2) = (D, H, W); the mean is over all subsets of them, flipped and flipped back.
        batch_size: windows predicted at once; on a GPU with as many of their mirrored copies as fit into memory. On a
            CPU at least so many: an engine that wants several at once gets them. Sums are the same.
        device: of the networks. If a GPU has enough memory, it also sums the windows, and the planes are on it.
        amp_dtype: the dtype of autocast, None for float32; probabilities are summed in float32.
        on_window: called with the number of windows just done.
        sigmoid: the outputs are regions that may overlap, each with a probability of its own.

    Raises:
        NotFiniteError: a network's logits are not finite. It names the precision, and is raised before any plane that
            they reach is yielded.
    """
    if not networks:
        raise ValueError("expected at least one network")
    if not 0 < step <= 1:
        raise ValueError(f"step must be in (0, 1], got {step}")
    device = torch.device(device)
    subsets = mirror_subsets(mirror_axes)
    volume, place = pad_to_patch(torch.as_tensor(image, dtype=torch.float32), patch_size)
    grid = WindowGrid.over(volume.shape[1:], patch_size, step)
    depths = grid.starts[0]
    sums: WindowSums | None = None
    forget_earlier(device)
    samples = least_at_once(networks, patch_size, device)
    batch_size = max(batch_size, samples // len(subsets))
    passes = MirroredPasses(
        subsets,
        device,
        amp_dtype,
        copies_at_once(device, len(subsets), samples),
        leaves_room=lambda num_classes: device_of_sums(grid, num_classes, device) == device,
        retry=lambda: forget_earlier(device),
    )
    for depth, following in zip(depths, [*depths[1:], grid.shape[0]], strict=True):
        totals: list[Tensor] = []
        for corners in in_batches(grid.layer(depth), batch_size):
            boxes = [(slice(None), *grid.box(corner)) for corner in corners]
            windows = stack_on(device, [volume[box] for box in boxes])
            for chosen, mirrored, logits in _in_order(networks, windows, passes):
                totals.append(_total(logits))
                if sums is None:
                    num_classes, times = logits.shape[1], len(networks) * len(subsets)
                    place_of_sums = device_of_sums(grid, num_classes, device)
                    sums = WindowSums(grid, num_classes, times, place_of_sums, sigmoid=sigmoid)
                for corner, window in zip(corners[chosen], logits.to(sums.device), strict=True):
                    sums.add(window, corner, mirrored)
            if on_window is not None:
                on_window(len(corners))
        assert sums is not None
        if not bool(torch.stack(totals).isfinite().all()):  # read once per layer, so that a GPU rarely waits
            raise NotFiniteError(
                f"the network's output is NaN or infinite in precision {amp_dtype or torch.float32}; finite numbers "
                "expected: of the scan and of the weights too" + HALF * (amp_dtype == torch.float16)
            )
        for index, plane in enumerate(sums.take(depth, following), start=depth):
            if place[0].start <= index < place[0].stop:
                yield plane[:, place[1], place[2]]


def _in_order(
    networks: Sequence[nn.Module], windows: Tensor, passes: MirroredPasses
) -> Iterator[tuple[slice, tuple[int, ...], Tensor]]:
    """Yield which windows, the axes along which they are mirrored, and their logits, of every network and copy.

    On a CPU one window follows the other, with all of its logits: sums of overlapping windows then have the same bits,
    however many windows are predicted at once. A GPU, whose memory would not hold all logits, takes windows together.
    """
    found = ((mirrored, logits) for network in networks for mirrored, logits in passes.run(network, windows))
    if len(windows) == 1 or windows.device.type != "cpu":
        for mirrored, logits in found:
            yield slice(None), mirrored, logits
        return
    every = list(found)
    for index in range(len(windows)):
        for mirrored, logits in every:
            yield slice(index, index + 1), mirrored, logits[index : index + 1]


def predict_probabilities(
    networks: Sequence[nn.Module], image: Tensor | np.ndarray, patch_size: Sequence[int], **options: Any
) -> Tensor:
    """Return all planes of `predict_planes` as one tensor (K, D, H, W) on the CPU, for small images.

    The options are those of `predict_planes`.
    """
    return torch.stack([plane.cpu() for plane in predict_planes(networks, image, patch_size, **options)], dim=1)


def _total(logits: Tensor) -> Tensor:
    """Return the sum of logits, finite only if all of them are; it takes a fortieth of the time of a softmax."""
    return logits.sum(dtype=torch.float32 if logits.dtype == torch.float16 else None).float()


def count_windows(shape: Sequence[int], patch_size: Sequence[int], step: float) -> int:
    """Return the number of windows over an image (D, H, W)."""
    return len(WindowGrid.over(shape, patch_size, step))
