"""Which cases train, which validate, which are left for testing.

Three kinds of split: nnU-Net's five folds of the training cases, exactly, so that folds can be compared with
published ones; the publisher's own (AMOS: imagesTr and imagesVa); and lists of ids that a config gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case

NUM_FOLDS = 5
SPLIT_SEED = 12345

Fold = int | Literal["all"]
# "five_fold", "official", or {"train": ids, "validation": ids}.
SplitRule = str | Mapping[str, Sequence[str]]
NAMED_RULES = ("five_fold", "official")


@dataclass(frozen=True)
class Split:
    """Cases by their use, each sorted by id; `test` cases have a label only where the dataset brings one."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def split_dataset(dataset: RawDataset, rule: SplitRule = "five_fold", fold: Fold = 0) -> Split:
    """Split a dataset's cases.

    `five_fold` splits the training cases by `fold` (0..4); those that are only trained on have folds of their own, so
    that a fold sees of them what the same fold of them alone would. `official` trains on all of them and validates on
    those that the publisher set aside. A mapping names train and validation ids among both. The latter two
    have one split only, so `fold` must be 0. `fold="all"` trains and validates on every training case, with any
    rule. Labelled cases that are neither trained nor validated on are test cases.

    Raises:
        InputError: another rule or fold; too few cases for five folds; a dataset without validation cases for
            `official`; ids that the dataset lacks, that are given twice, or lists that are empty.
    """
    labelled = {case.id: case for case in (*dataset.training, *dataset.validation)}
    if fold == "all":
        train_ids = validation_ids = sorted(case.id for case in dataset.training)
    elif rule == "five_fold":
        train_ids, validation_ids = _folds(dataset, fold)
    else:
        if fold != 0:
            raise InputError(f"fold={fold}: the split {_spell(rule)} is a single one, fold=0 or fold=all expected")
        train_ids, validation_ids = _single_split(dataset, rule, labelled)
    used = {*train_ids, *validation_ids, *dataset.only_trained}
    left = [case for name, case in labelled.items() if name not in used]
    test = {case.id: case for case in (*dataset.test, *left)}
    return Split(
        tuple(labelled[name] for name in train_ids),
        tuple(labelled[name] for name in validation_ids),
        tuple(test[name] for name in sorted(test)),
    )


def five_fold(case_ids: Sequence[str], fold: Fold) -> tuple[list[str], list[str]]:
    """Training and validation ids of a fold (0..4), each sorted.

    The ids are sorted, then split by scikit-learn's KFold(5, shuffle=True, random_state=12345), as nnU-Net
    does. Raises InputError for another fold, for fewer than five cases and for repeated ids.
    """
    from sklearn.model_selection import KFold

    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < NUM_FOLDS:
        raise InputError(f"fold is {fold!r}: an integer from 0 to {NUM_FOLDS - 1} expected")
    if len(case_ids) < NUM_FOLDS:
        raise InputError(
            f"{len(case_ids)} training cases cannot be split: at least {NUM_FOLDS} expected (one per fold)"
        )
    repeated = [name for name, count in Counter(case_ids).items() if count > 1]
    if repeated:
        raise InputError(f"case ids {repeated} occur more than once: a case must not be in training and validation")
    ordered = sorted(case_ids)
    splits = list(KFold(NUM_FOLDS, shuffle=True, random_state=SPLIT_SEED).split(ordered))
    training, validation = splits[fold]
    return [ordered[index] for index in training], [ordered[index] for index in validation]


def _folds(dataset: RawDataset, fold: Fold) -> tuple[list[str], list[str]]:
    more = dataset.only_trained
    train, validation = five_fold([case.id for case in dataset.training if case.id not in more], fold)
    return sorted([*train, *five_fold(sorted(more), fold)[0]]) if more else train, validation


def rule_problem(rule: object) -> str | None:
    """What is wrong with a split rule by itself, before any dataset is read; None where nothing is."""
    expected = f"{' | '.join(NAMED_RULES)} | {{train: [ids], validation: [ids]}}"
    if isinstance(rule, str):
        return None if rule in NAMED_RULES else f"split={rule!r}: expected {expected}"
    if not isinstance(rule, Mapping) or set(rule) != {"train", "validation"}:
        return f"split={rule!r}: expected {expected}"
    lists = [ids for ids in rule.values() if isinstance(ids, Sequence) and not isinstance(ids, str)]
    if len(lists) < 2 or not all(ids and all(isinstance(name, str) for name in ids) for ids in lists):
        return f"split={rule!r}: two lists of at least one case id each expected"
    return None


def _single_split(dataset: RawDataset, rule: SplitRule, labelled: Mapping[str, Case]) -> tuple[list[str], list[str]]:
    problem = rule_problem(rule)
    if problem is not None:
        raise InputError(problem)
    if isinstance(rule, str):
        if not dataset.validation:
            raise InputError(f"{dataset.folder}: split=official, but the dataset has no validation cases of its own")
        return sorted(case.id for case in dataset.training), sorted(case.id for case in dataset.validation)
    train, validation = list(rule["train"]), list(rule["validation"])
    counts = Counter([*train, *validation])
    problems = [f"case {name} is given {count} times" for name, count in counts.items() if count > 1]
    problems += [f"case {name}: no labelled case of the dataset" for name in counts if name not in labelled]
    raise_problems(problems, f"{dataset.folder}: the split of the config cannot be used")
    return sorted(train), sorted(validation)


def _spell(rule: SplitRule) -> str:
    return repr(rule) if isinstance(rule, str) else "of given ids"
