"""Class probabilities of a whole image from overlapping windows, mirrored copies and several networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor, nn

# Sigma is an eighth of the window (spec section 4): weights fall to exp(-8) on its faces.
SIGMA_SCALE = 0.125


def predict_probabilities(
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
) -> Tensor:
    """Softmax probabilities (K, D, H, W), float32, of a preprocessed image (C, D, H, W).

    Args:
        networks: in eval mode on `device`, each returning logits (B, K, *patch_size); their probabilities
            are averaged.
        patch_size: voxels; an image smaller than it is padded with zeros on both sides.
        step: distance of neighbouring windows as a share of the patch, in (0, 1].
        mirror_axes: of (0, 1, 2) = (D, H, W); the mean is over all subsets of them, flipped and flipped back.
        batch_size: windows predicted at once.
        amp_dtype: None for float32, else the type of autocast; probabilities are added up in float32.
        on_window: called with the number of windows just done.

    Windows overlap with Gaussian weights (sigma = patch / 8), by MONAI's `sliding_window_inference`.
    """
    from monai.inferers.utils import sliding_window_inference  # import takes seconds

    if not networks:
        raise ValueError("expected at least one network")
    if not 0 < step <= 1:
        raise ValueError(f"step must be in (0, 1], got {step}")
    device = torch.device(device)
    flips = mirror_subsets(mirror_axes)

    def average(windows: Tensor) -> Tensor:
        mean: Tensor | None = None
        for network, axes in product(networks, flips):
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                logits = network(windows.flip(axes) if axes else windows)
            probabilities = logits.float().softmax(dim=1)
            probabilities = probabilities.flip(axes) if axes else probabilities
            mean = probabilities if mean is None else mean.add_(probabilities)
        assert mean is not None
        if on_window is not None:
            on_window(len(windows))
        return mean.div_(len(networks) * len(flips))

    with torch.inference_mode():
        batch = torch.as_tensor(image, dtype=torch.float32)[None]
        result = sliding_window_inference(
            batch,
            roi_size=tuple(patch_size),
            sw_batch_size=batch_size,
            predictor=average,
            overlap=1 - step,
            mode="gaussian",
            sigma_scale=SIGMA_SCALE,
            sw_device=device,
            # The whole image's probabilities stay in main memory: 100 classes at 384^3 are 23 GB.
            device=torch.device("cpu"),
        )
    assert isinstance(result, Tensor)
    return result[0]


def mirror_subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Dimensions of (B, C, D, H, W) to flip, for every subset of the spatial axes, the empty one first."""
    if any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"mirror_axes must be distinct axes among 0, 1, 2, got {tuple(axes)}")
    sizes = range(len(axes) + 1)
    return [tuple(axis + 2 for axis in subset) for size in sizes for subset in combinations(axes, size)]


def count_windows(shape: Sequence[int], patch_size: Sequence[int], step: float) -> int:
    """Number of windows over an image (D, H, W).

    Along an axis of 100 voxels, with a patch of 32 and step 0.5, windows start at 0, 16, .., 64 and 68:
    1 + ceil(68 / 16) = 6.
    """
    counts = []
    for size, patch in zip(shape, patch_size, strict=True):
        # As MONAI computes it, rounding of 1 - step included.
        interval = max(int(patch * (1 - (1 - step))), 1)
        counts.append(1 + math.ceil(max(size - patch, 0) / interval))
    return math.prod(counts)
