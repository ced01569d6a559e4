"""What a fault weighs: an error where the chosen split uses the case, a warning where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from e2enet.data.formats.problems import Problem

UNUSED = "; no error, since the chosen split does not use the case"


@dataclass(frozen=True)
class CaseUse:
    """How the chosen split uses a dataset's cases, as ids.

    Attributes:
        train, validation: What the split, with its limit, trains and validates on.
        test: Labelled cases that are scored after training; empty where none are.
        known: Every case of the dataset.
        by_name: The split names its ids, so that no other case can be one of its.
    """

    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]
    known: frozenset[str]
    by_name: bool

    def uses(self, case: str) -> bool:
        """Whether a fault of the case is one of the run; what could not even be listed may be in one of five folds."""
        named = self.train | self.validation | self.test
        return case in named or not (self.by_name or case in self.known)

    def part_of(self, case: str) -> str:
        """What the case is used for, in a word."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return next((part for part, cases in parts.items() if case in cases), "not used")

    def on_both_sides(self, first: str, second: str) -> bool:
        """Whether one of two cases is trained on and the other validated or tested on."""
        held_out = (self.validation | self.test) - self.train
        return (first in self.train and second in held_out) or (second in self.train and first in held_out)


def judge(problems: Iterable[Problem], use: CaseUse) -> tuple[list[Problem], set[str]]:
    """The problems as the split weighs them, and the cases that have an error and are not used.

    An image that is there twice is an error where it stands on both sides of the split.
    """
    judged, unusable = [], set()
    for problem in problems:
        if problem.alike:
            judged.append(_weigh_twin(problem, use))
        elif problem.severity == "error" and problem.case is not None and not use.uses(problem.case):
            unusable.add(problem.case)
            judged.append(replace(problem, severity="warning", problem=problem.problem + UNUSED))
        else:
            judged.append(problem)
    return judged, unusable


def _weigh_twin(problem: Problem, use: CaseUse) -> Problem:
    case = str(problem.case)
    across = [other for other in problem.alike if use.on_both_sides(case, other)]
    if not across:
        return replace(problem, severity="warning")
    parts = f"one is {use.part_of(case)}, the other {use.part_of(across[0])}; data.exclude leaves one out"
    text = f"the same image, voxel for voxel, as case {across[0]}, on both sides of the chosen split: {parts}"
    return replace(problem, severity="error", problem=text)
