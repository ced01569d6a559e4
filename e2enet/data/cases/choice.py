"""The cases of a dataset that a run uses, and the problems of the dataset that affect them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from e2enet.common.errors import InputError
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.splits import (
    Fold,
    Split,
    SplitRule,
    fold_problem,
    is_group,
    names_ids,
    require_groups_apart,
    rule_problem,
    split_dataset,
)
from e2enet.data.cases.use import CaseUse, judge
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, raise_errors


@dataclass(frozen=True)
class CaseChoice:
    """The config's choice of cases.

    Attributes:
        fold: 0, 1, .. or "all", see `split_dataset`. "every" takes the cases of all folds.
        rule: `data.split`.
        group: `data.group`: a regular expression that keeps the cases of one patient in one fold.
        limit: `data.limit_cases`: the number of the fold's training cases to keep. None keeps all. Cases that are
            only trained on keep their share of them.
        score_test: Whether labelled test cases are predicted and scored after training.
    """

    fold: Fold = 0
    rule: SplitRule = "five_fold"
    group: str | None = None
    limit: int | None = None
    score_test: bool = True

    def problems(self) -> list[str]:
        """Return the errors in the choice itself, before any dataset is read."""
        found = [fold_problem(self.rule, self.fold), rule_problem(self.rule)]
        if self.group is not None and not is_group(self.group):
            found.append(f"group={self.group!r} must be a regular expression with a group, such as '(patient[0-9]+)'")
        if self.limit is not None and self.limit < 1:
            found.append(f"limit_cases={self.limit} must be at least 1")
        return [problem for problem in found if problem is not None]

    def split(self, dataset: RawDataset) -> Split:
        """Split the dataset and apply the limit.

        Raise InputError if either is impossible, or if a group that is trained on is also scored as a test case.
        """
        split = split_dataset(dataset, self.rule, self.fold, self.group)
        if self.group is not None and self.score_test and self.fold != "every":
            require_groups_apart(split, self.group, dataset.folder)
        if self.limit is None or self.fold == "every":  # another fold trains on the cases that one fold leaves out
            return split
        count = len(split.train)
        if self.limit > count:
            raise InputError(
                f"limit_cases={self.limit}, but fold {self.fold} of {dataset.folder} has {count} training cases"
            )
        train = _first_cases(split.train, self.limit, dataset.only_trained)
        if self.fold != "all":
            return replace(split, train=train)
        # It validates on its training cases, so the limit applies to both.
        return replace(split, train=train, validation=tuple(case for case in train if case in split.validation))

    def use(self, dataset: RawDataset) -> CaseUse:
        """Return how the split uses the dataset's cases; raise InputError if there is no such split."""
        split = self.split(dataset)
        scored = [case for case in split.test if case.label is not None] if self.score_test else []
        known = (*dataset.training, *dataset.validation, *dataset.test)
        parts = (split.train, split.validation, scored, known)
        train, validation, test, every = (frozenset(case.id for case in part) for part in parts)
        return CaseUse(train, validation, test, every, names_ids(self.rule))


@dataclass(frozen=True)
class ChosenCases:
    """A dataset as a run uses it. `usable` leaves out the unused training cases that have an error."""

    dataset: RawDataset
    split: Split
    usable: RawDataset


def read_chosen(source: DataSource, choice: CaseChoice, more: Iterable[Problem] = ()) -> ChosenCases:
    """Read the dataset. Raise InputError listing the errors of used cases and of the dataset as a whole.

    `more` holds the problems that the check found in the files themselves.
    """
    problems: list[Problem] = []
    heading = f"{source.folder}: the dataset cannot be used"
    dataset = source.scan(problems)
    try:
        use = choice.use(dataset)
    except InputError:
        raise_errors(problems, heading)  # the impossible split may only be their consequence
        raise
    judged, unusable = judge([*problems, *more], use)
    raise_errors(judged, heading)
    kept = tuple(case for case in dataset.training if case.id not in unusable)
    return ChosenCases(dataset, choice.split(dataset), replace(dataset, training=kept))


def _first_cases(cases: Sequence[Case], limit: int, only_trained: Collection[str]) -> tuple[Case, ...]:
    """Return the first cases, in which those that are only trained on keep their share; one of the others is kept.

    20 of 160 such cases and 32 others: 17 and 3.
    """
    others = [case for case in cases if case.id not in only_trained]
    count = max(min(1, len(others)), round(limit * len(others) / len(cases)))
    more = [case for case in cases if case.id in only_trained]
    kept = {case.id for case in (*others[:count], *more[: limit - count])}
    return tuple(case for case in cases if case.id in kept)
