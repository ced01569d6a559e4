"""Draws the case of a training patch and its position in the case: `data.sampler`.

A sample must depend on (seed, epoch, index) alone, whichever worker makes it. So a sampler keeps no state between
samples. It draws from its arguments or from torch's global generator, which is seeded for each sample.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import torch

from e2enet.common.errors import raise_problems
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.preparation.foreground import ANNOTATED
from e2enet.data.preparation.store import PreparedCase

Triple = tuple[int, int, int]
Weights = Mapping[Any, float]

FOREGROUND_SHARE = 0.33  # nnU-Net's
FIXED_FROM = 3  # samples per batch from which the number on foreground is fixed
COARSEST = 0.1
DRAWS = 2**64


class SamplerOptions(TypedDict, total=False):
    """Arguments of `PatchSampler`, for a subclass to pass on: `**options: Unpack[SamplerOptions]`."""

    foreground_share: float
    class_weights: Weights | None
    case_weights: Weights | None


class PatchSampler:
    """Draws cases evenly, and patches on foreground or anywhere in them.

    Weights make some cases or classes more frequent. A user's own class overrides `draw_case`, `draw_start` or both.

    Args:
        foreground_share: Share of patches that are centred on foreground, from 0 to 1, see `foreground_count`.
        class_weights: Class number or name -> weight >= 0: how often patches on foreground are centred on the class.
            Omitted classes have weight 1, and a class of weight 0 is never chosen. None: all evenly. Classes are the
            labels except background and the ignore label, or the regions if the network is trained on regions.
        case_weights: Case id -> weight >= 0: how often the case is drawn. Omitted cases have weight 1. None: evenly.

    Raises:
        InputError: a share or weight that is out of range.
    """

    def __init__(
        self,
        foreground_share: float = FOREGROUND_SHARE,
        class_weights: Weights | None = None,
        case_weights: Weights | None = None,
    ) -> None:
        weights = {"class_weights": class_weights or {}, "case_weights": case_weights or {}}
        problems = [
            f"data.sampler.{name}: {key} has weight {weight}; a number >= 0 expected"
            for name, given in weights.items()
            for key, weight in given.items()
            if not 0 <= weight < float("inf")
        ]
        if not 0 <= foreground_share <= 1:
            problems.append(f"data.sampler.foreground_share={foreground_share} must be from 0 to 1")
        raise_problems(problems, "The patch sampler cannot be used:")
        self.foreground_share = foreground_share
        self.class_weights: Weights = dict(weights["class_weights"])
        self.case_weights = {str(key): float(weight) for key, weight in weights["case_weights"].items()}

    @property
    def has_weights(self) -> bool:
        """Whether `bind` has anything to look up."""
        return bool(self.class_weights or self.case_weights)

    def draw_case(self, cases: Sequence[PreparedCase], draw: int) -> int:
        """Return the position in `cases` of a sample's case.

        Args:
            cases: The training cases, one or more.
            draw: The sample's own uniform whole number from 0 to 2**64 - 1.
        """
        if not self.case_weights:
            return draw % len(cases)
        return _weighted([self.case_weights.get(case.id, 1.0) for case in cases], draw / DRAWS)

    def draw_start(self, case: PreparedCase, size: Triple, foreground: bool) -> Triple:
        """Return the first voxel (d, h, w) of a patch of `size` voxels in a case; negative where the case is padded.

        Along an axis where the patch fits, it lies within the case. A patch on foreground has the chosen voxel at its
        centre (voxel size // 2) unless it had to move inwards. Along other axes the case is in the middle of the patch.
        A case without foreground of a weight above 0 gives a patch anywhere.

        With an ignore label, "anywhere" means on a random annotated voxel, as in nnU-Net, so that the loss has voxels
        to use. Only a case without annotated voxels then gives a patch at any position.
        """
        coordinates = case.foreground
        keys = set(coordinates)
        chosen = self._draw_class(sorted(keys - {ANNOTATED})) if foreground else None
        if chosen is None and ANNOTATED in keys:
            chosen = ANNOTATED
        if chosen is not None:
            return start_on(coordinates[chosen], size, case.shape)
        d, h, w = (low + draw_below(high - low + 1) for low, high in map(start_range, case.shape, size))
        return d, h, w

    def bind(self, scheme: LabelScheme, known: Collection[str], trained: Collection[str]) -> None:
        """Look up the class names and case ids of the weights, once for a run.

        Args:
            scheme: The label scheme of the dataset.
            known: Ids of all cases that any fold may train on.
            trained: Ids of the cases that this run trains on.

        Raises:
            InputError: with every name or id that the dataset does not have, or if all classes or all training cases
                have weight 0.
        """
        classes = {number: name for number, name in scheme.class_names.items() if number}
        numbers = {str(name): number for number, name in classes.items()} | {str(n): n for n in classes}
        problems = [
            _unknown("class_weights", key, numbers, "class") for key in self.class_weights if str(key) not in numbers
        ]
        problems += [_unknown("case_weights", key, known, "case") for key in self.case_weights if key not in known]
        weights = {numbers[str(key)]: float(w) for key, w in self.class_weights.items() if str(key) in numbers}
        if not problems and classes and not any(weights.get(number, 1.0) for number in classes):
            problems.append("data.sampler.class_weights: every class has weight 0; one above expected")
        if not problems and trained and not any(self.case_weights.get(case, 1.0) for case in trained):
            problems.append(f"data.sampler.case_weights: each of the {len(trained)} training cases has weight 0")
        raise_problems(problems, "The patch sampler does not fit the dataset:")
        self.class_weights = weights

    def _draw_class(self, present: Sequence[int]) -> int | None:
        """Draw one of the classes of a case; None if none has a weight above 0."""
        if not self.class_weights:
            return present[draw_below(len(present))] if present else None
        weights = [self.class_weights.get(number, 1.0) for number in present]
        return present[_weighted(weights, float(torch.rand(1, dtype=torch.float64)))] if any(weights) else None


def start_on(voxels: np.ndarray, size: Triple, shape: Triple) -> Triple:
    """Return the start of a patch of `size` around one of `voxels` (N, 3), drawn from torch's generator.

    If the patch fits into the case's `shape` along an axis, it lies within the case there.
    """
    lowest, highest = zip(*map(start_range, shape, size), strict=True)
    voxel = voxels[draw_below(len(voxels))]
    d, h, w = (int(first) for first in np.clip(voxel - np.array(size) // 2, lowest, highest))
    return d, h, w


def start_range(image_size: int, patch_size: int) -> tuple[int, int]:
    """Smallest and largest start of a patch along one axis.

    0 and 5 for a patch of 8 in 13 voxels; -1 and -1 for 8 in 5 voxels (padding of 1 before and 2 after).
    """
    if patch_size <= image_size:
        return 0, image_size - patch_size
    start = -((patch_size - image_size) // 2)
    return start, start


def draw_below(limit: int) -> int:
    """Uniform whole number from 0 to limit - 1, from torch's generator as in TorchIO's samplers."""
    return int(torch.randint(limit, (1,)).item())


def foreground_count(batch_size: int, share: float, accumulate: int = 1) -> int | None:
    """Return how many samples of each batch, the last ones, are centred on foreground; None if each is drawn.

    Batches of three and more hold the nearest whole number, `b - round(b * (1 - share))` as in nnU-Net: at 0.33 that
    is 1 of 3 or 4, 2 of 5 to 7. Otherwise each sample is drawn, with the share as its probability. This holds for
    smaller batches, for several batches per step, and if the number is 0 (a share of 0.1 of 4), is the whole batch, or
    as a fraction differs from the share by more than 0.1.
    """
    count = batch_size - round(batch_size * (1 - share))
    fixed = batch_size >= FIXED_FROM and accumulate == 1 and 0 < count < batch_size
    return count if fixed and abs(count / batch_size - share) <= COARSEST else None


def _weighted(weights: Sequence[float], draw: float) -> int:
    """Return the position for a draw from 0 to 1, each as likely as its weight; never one of weight 0."""
    sums = list(accumulate(weights))
    return bisect_right(sums, draw * sums[-1], hi=max(p for p, weight in enumerate(weights) if weight))


def _unknown(name: str, key: object, known: Collection[str], kind: str) -> str:
    close = get_close_matches(str(key), sorted(known), n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)[:8])}{', ..' * (len(known) > 8)}"
    return f"data.sampler.{name}: {key} is no {kind} that patches are drawn for; {hint}"
