"""What `benchmarks.accuracy` compares, and trainings whose epochs end at the minutes at which they are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from e2enet.common.errors import InputError, raise_problems

NNUNET = "nnunet"
# Method -> its name in tables and figures, and its overrides of `e2enet train`. nnU-Net has none.
TITLES = {NNUNET: "nnU-Net", "dense": "E2ENet, dense", "s50": "E2ENet, S = 0.5", "s80": "E2ENet, S = 0.8"}
OVERRIDES: dict[str, tuple[str, ...]] = {
    "dense": ("dsff=dense",),
    "s50": ("dsff=short", "dsff.density=0.5"),
    "s80": ("dsff=short", "dsff.density=0.2"),
}


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be compared on: its name in the figure, its overrides, and more for E2ENet alone."""

    title: str
    data: tuple[str, ...]
    e2enet: tuple[str, ...] = ()


DATASETS = {
    "hippocampus": Dataset("Hippocampus MRI", ("data=msd", "data.name=Task04_Hippocampus")),
    "acdc": Dataset(
        "Cardiac cine MRI (ACDC)",
        # The images of patient076 are those of patient074.
        ("data=acdc", "data.exclude=[patient076_frame01,patient076_frame12]"),
        # The planned patch, four of 10 x 224 x 256, takes 20 s a step on two cores.
        ("plan.patch_size=[10,128,128]", "plan.batch_size=2"),
    ),
    "phantom": Dataset("Phantom", ("data=phantom",)),
}

EPOCH_STEPS = 50  # an epoch has about as many steps, so that a stopped nnU-Net loses little
LEAST_STEPS, MOST_STEPS = 25, 75


@dataclass(frozen=True)
class Schedule:
    """The length of one training.

    Attributes:
        seconds_per_step: Measured before; with it, steps stand for minutes of training.
        steps_per_epoch: Steps of each epoch.
        epochs: Epochs in all; the learning rate's schedule ends with them.
        points: Minutes at which the training is scored -> finished epochs.
    """

    seconds_per_step: float
    steps_per_epoch: int
    epochs: int
    points: dict[float, int]

    @property
    def period(self) -> int:
        """Epochs from one checkpoint that is kept to the next; every point is a multiple of it."""
        return math.gcd(*self.points.values()) or self.epochs

    def steps(self, minutes: float) -> int:
        """Return the steps that a point has trained."""
        return self.points[minutes] * self.steps_per_epoch

    def minutes(self, minutes: float) -> float:
        """Return the exact minutes of a point: whole steps come within half a step per epoch of the wanted ones."""
        return self.steps(minutes) * self.seconds_per_step / 60

    def to_plain(self) -> dict[str, Any]:
        return asdict(self) | {"points": [[minutes, epochs] for minutes, epochs in self.points.items()]}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Schedule:
        """Inverse of `to_plain`."""
        return cls(**content | {"points": {minutes: epochs for minutes, epochs in content["points"]}})


def plan_schedule(minutes: Sequence[float], seconds_per_step: float) -> Schedule:
    """Return a training of the longest of these minutes, whose epochs end at all of them.

    The greatest common divisor of the minutes is cut into epochs of 25 to 75 steps, in the number that comes nearest
    to it. 10, 20 and 40 minutes at 0.57 s: 10 minutes are 1052.6 steps, 27 epochs of 39 steps are 1053.

    Raises:
        InputError: not even one step fits into the divisor.
    """
    unit = _common_divisor(minutes)
    steps = float(unit) * 60 / seconds_per_step
    if steps < 1:
        raise InputError(
            f"minutes {spelled(minutes)}: they are multiples of {float(unit):g}, in which {steps:.2f} steps of "
            f"{seconds_per_step:g} s fit; a step at least expected, so longer minutes"
        )
    counts = range(max(1, math.ceil(steps / MOST_STEPS)), max(1, math.floor(steps / LEAST_STEPS)) + 1)
    epochs = min(
        counts, key=lambda count: (abs(count * round(steps / count) - steps), abs(steps / count - EPOCH_STEPS))
    )
    points = {minute: int(Fraction(str(minute)) / unit) * epochs for minute in sorted(minutes)}
    return Schedule(seconds_per_step, round(steps / epochs), max(points.values()), points)


def plan_jobs(minutes: Sequence[float], each: bool) -> list[tuple[float, ...]]:
    """Return the points of every training of a method and seed: one training, or with `each` one for each budget."""
    return [(minute,) for minute in sorted(minutes)] if each else [tuple(sorted(minutes))]


def check_choices(
    methods: Sequence[str], seeds: Sequence[int], minutes: Sequence[float], threads: dict[str, int]
) -> None:
    """Raise one InputError that lists all that is wrong with these values."""
    problems = [f"--methods {name}: expected {' | '.join(TITLES)}" for name in methods if name not in TITLES]
    problems += [f"--seeds {seed}: a whole number >= 0 expected" for seed in seeds if seed < 0]
    problems += [f"--minutes {value:g}: a number > 0 expected" for value in minutes if not 0 < value < math.inf]
    problems += [f"{option} {n}: a whole number >= 1 expected" for option, n in threads.items() if n < 1]
    for option, values in (("methods", methods), ("seeds", seeds), ("minutes", minutes)):
        if len(set(values)) < len(values):
            problems.append(f"--{option} {spelled(values)}: each once expected")
    raise_problems(problems, "The command line cannot be used:")


def spelled(values: Sequence[Any]) -> str:
    """Return values as they are typed on the command line."""
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _common_divisor(minutes: Sequence[float]) -> Fraction:
    """Return the largest number of which all minutes are multiples; as they are written, so 0.1 is a tenth."""
    exact = [Fraction(str(value)) for value in minutes]
    denominator = math.lcm(*(value.denominator for value in exact))
    return Fraction(math.gcd(*(int(value * denominator) for value in exact)), denominator)
