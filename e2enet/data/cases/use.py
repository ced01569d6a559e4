"""Severity of a case's problem: an error if the chosen split uses the case, otherwise a warning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from e2enet.data.formats.problems import Problem

UNUSED = "; no error, since the chosen split does not use the case"


@dataclass(frozen=True)
class CaseUse:
    """Ids of a dataset's cases by their use in the chosen split.

    Attributes:
        train, validation: Cases that the split trains and validates on, after `limit_cases`.
        test: Labelled cases that are scored after training; may be empty.
        known: Every case of the dataset.
        by_name: Whether the split lists its ids, so that it uses no other case.
    """

    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]
    known: frozenset[str]
    by_name: bool

    def uses(self, case: str) -> bool:
        """Whether a problem of the case affects the run.

        An unknown case is one that could not be listed. It counts unless `by_name`: it may belong to a fold.
        """
        named = self.train | self.validation | self.test
        return case in named or not (self.by_name or case in self.known)

    def part_of(self, case: str) -> str:
        """Return the use of the case: "training", "validation", "test" or "not used"."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return next((part for part, cases in parts.items() if case in cases), "not used")

    def on_both_sides(self, first: str, second: str) -> bool:
        """Whether one of two cases is trained on and the other validated or tested on."""
        held_out = (self.validation | self.test) - self.train
        return (first in self.train and second in held_out) or (second in self.train and first in held_out)


def judge(problems: Iterable[Problem], use: CaseUse) -> tuple[list[Problem], set[str]]:
    """Return the problems with their severity for the split, and the ids of unused cases that have an error.

    A duplicate image is an error only if its copies are on both sides of the split.
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
