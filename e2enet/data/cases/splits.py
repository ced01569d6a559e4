"""Split the cases of a dataset into training, validation and test cases.

There are four kinds of split:
- nnU-Net's five folds of the training cases, reproduced exactly so that folds compare with published ones
- the publisher's own split (AMOS: imagesTr and imagesVa)
- lists of ids in the config
- the folds in a file, such as nnU-Net's splits_final.json
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.cases.split_file import find_split_file, is_split_file, read_split_file
from e2enet.data.formats.dataset import RawDataset, shared_ids
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import raise_errors

NUM_FOLDS = 5
SPLIT_SEED = 12345

# "every": the cases of all folds, for preparation.
Fold = int | Literal["all", "every"]
# "five_fold", "official", {"train": ids, "validation": ids}, or a JSON file.
SplitRule = str | Mapping[str, Sequence[str]]
NAMED_RULES = ("five_fold", "official")
RULE_WORDS = f"{' | '.join(NAMED_RULES)} | {{train: [ids], validation: [ids]}} | a file such as splits_final.json"
Ids = tuple[list[str], list[str]]  # training, validation


@dataclass(frozen=True)
class Split:
    """Training, validation and test cases, each sorted by id.

    Test cases have a label only if the dataset provides one. `folds` is the number of folds of the split rule.
    """

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    folds: int = 1


def split_dataset(
    dataset: RawDataset, rule: SplitRule = "five_fold", fold: Fold = 0, group: str | None = None
) -> Split:
    """Split a dataset's cases.

    - `five_fold` splits the training cases; `fold` is 0 to 4. Cases that are only trained on (`only_trained`) are
      split into five folds separately. Fold k trains on the training part of their fold k.
    - `official` trains on all training cases and validates on the cases that the publisher set aside.
    - A mapping lists training and validation ids out of both groups. A file does so for each of its folds. Ids that
      the dataset leaves out (`excluded`) are dropped from these lists.

    `official` and a mapping have a single split, so `fold` must be 0. With any rule, `fold="all"` trains and
    validates on every training case, and `fold="every"` on the cases of all folds. Labelled cases that are neither
    trained nor validated on become test cases.

    Raises:
        InputError: the rule or fold is unknown; there are too few cases for five folds; the dataset has no
            validation cases for `official`; a listed id is unknown or repeated; a list is empty; a training case and
            a validation case have the same id; `group` (see `group_of`) does not match an id; or a rule other than
            `five_fold` separates the cases of a group.
    """
    raise_errors(shared_ids(dataset.training, dataset.validation), f"{dataset.folder} cannot be split:")
    labelled = {case.id: case for case in (*dataset.training, *dataset.validation)}
    count = 1
    if fold == "all" or (fold == "every" and rule == "five_fold" and group is None):  # even with too few cases to split
        train_ids = sorted(case.id for case in dataset.training)
        only_trained = dataset.only_trained if fold == "all" else ()
        validation_ids = [name for name in train_ids if name not in only_trained]
    else:
        folds = _folds(dataset, rule, group, labelled)
        count = len(folds)
        if fold == "every":
            train_ids = validation_ids = sorted({name for ids in folds for part in ids for name in part})
        else:
            _require_fold(fold, rule, count)
            train_ids, validation_ids = folds[fold]
    used = {*train_ids, *validation_ids, *dataset.only_trained}
    left = [case for name, case in labelled.items() if name not in used]
    test = {case.id: case for case in (*dataset.test, *left)}
    return Split(
        tuple(labelled[name] for name in train_ids),
        tuple(labelled[name] for name in validation_ids),
        tuple(test[name] for name in sorted(test)),
        count,
    )


def five_fold(case_ids: Sequence[str], fold: int, group: str | None = None) -> Ids:
    """Return the sorted training and validation ids of a fold (0..4).

    As in nnU-Net, the ids are sorted, then split like scikit-learn's KFold(5, shuffle=True, random_state=12345). With
    `group`, the groups are split instead, in the order of their first id. If each group has one id, the folds are
    the same. Raise InputError for another fold, fewer than five cases or groups, or repeated ids.
    """
    _require_fold(fold, "five_fold", NUM_FOLDS)
    return _five_folds(case_ids, group)[fold]


def group_of(case_ids: Sequence[str], pattern: str) -> dict[str, str]:
    """Map each id to the text that the pattern's first group matches, anywhere in the id.

    Raise InputError naming the ids without a match.
    """
    matches = {name: re.search(pattern, name) for name in case_ids}
    wrong = [name for name, match in matches.items() if match is None or match[1] is None]
    if wrong:
        named = ", ".join(wrong[:5]) + f" and {len(wrong) - 5} more" * (len(wrong) > 5)
        raise InputError(f"data.group={pattern}: its first group has no match in the ids {named}; one in each expected")
    return {name: str(match[1]) for name, match in matches.items() if match is not None}


def require_groups_apart(split: Split, group: str, folder: Path) -> None:
    """Raise InputError naming groups that are trained on and also scored, as labelled test cases.

    A test id that `group` does not match is in no group.
    """
    trained = set(group_of([case.id for case in split.train], group).values())
    problems = []
    for case in split.test:
        match = re.search(group, case.id)
        if case.label is not None and match is not None and match[1] in trained:
            problems.append(f"{match[1]} of data.group is trained on, and {case.id} would be a test case")
    if problems:
        raise_problems(
            [*problems, "data.exclude leaves cases out; final.predict=false scores no test cases"],
            f"{folder}: the split cannot be used:",
        )


def is_group(pattern: object) -> bool:
    """Whether a value is a regular expression with a group in it."""
    try:
        return isinstance(pattern, str) and re.compile(pattern).groups > 0
    except re.error:
        return False


def names_ids(rule: SplitRule) -> bool:
    """Whether a rule lists the ids of its cases and leaves out all others."""
    return not isinstance(rule, str) or is_split_file(rule)


def fold_problem(rule: SplitRule, fold: object) -> str | None:
    """Return what is wrong with a fold before any dataset is read, or None."""
    whole = isinstance(fold, int) and not isinstance(fold, bool) and fold >= 0
    if fold in ("all", "every") or (whole and (is_split_file(rule) or int(str(fold)) < NUM_FOLDS)):
        return None
    return f"fold={fold!r} must be 0 to {NUM_FOLDS - 1} or 'all'"


def rule_problem(rule: object) -> str | None:
    """Return what is wrong with a split rule before any dataset is read, or None."""
    if isinstance(rule, str):
        return None if rule in NAMED_RULES or is_split_file(rule) else f"split={rule!r}: expected {RULE_WORDS}"
    if not isinstance(rule, Mapping) or set(rule) != {"train", "validation"}:
        return f"split={rule!r}: expected {RULE_WORDS}"
    lists = [ids for ids in rule.values() if isinstance(ids, Sequence) and not isinstance(ids, str)]
    if len(lists) < 2 or not all(ids and all(isinstance(name, str) for name in ids) for ids in lists):
        return f"split={rule!r}: two lists of at least one case id each expected"
    return None


def _folds(dataset: RawDataset, rule: SplitRule, group: str | None, labelled: Mapping[str, Case]) -> list[Ids]:
    """Training and validation ids of every fold of a rule."""
    problem = rule_problem(rule)
    if problem is not None:
        raise InputError(problem)
    if rule == "five_fold":
        more = dataset.only_trained
        folds = _five_folds([case.id for case in dataset.training if case.id not in more], group)
        also = _five_folds(sorted(more), group) if more else [([], [])] * NUM_FOLDS
        return [(sorted([*train, *own[0]]), validation) for (train, validation), own in zip(folds, also, strict=True)]
    if rule == "official":
        if not dataset.validation:
            raise InputError(f"{dataset.folder}: split=official, but the dataset has no validation cases of its own")
        folds = [(sorted(case.id for case in dataset.training), sorted(case.id for case in dataset.validation))]
        origin = f"{dataset.folder}: the official split"
    elif isinstance(rule, str):
        path = find_split_file(rule, dataset.folder)
        folds, origin = read_split_file(path), str(path)
    else:
        folds = [(list(rule["train"]), list(rule["validation"]))]
        origin = f"{dataset.folder}: the split of the config"
    return _checked(folds, origin, labelled, dataset.excluded, group)


def _five_folds(case_ids: Sequence[str], group: str | None) -> list[Ids]:
    repeated = [name for name, count in Counter(case_ids).items() if count > 1]
    if repeated:
        raise InputError(f"case ids {repeated} occur more than once: a case must not be in training and validation")
    ordered = sorted(case_ids)
    groups: dict[str, list[str]] = {}
    for name, key in (group_of(ordered, group) if group else dict(zip(ordered, ordered, strict=True))).items():
        groups.setdefault(key, []).append(name)
    if len(groups) < NUM_FOLDS:
        what = ("training case" if group is None else "group") + "s" * (len(groups) != 1)
        what += "" if group is None else f" of data.group={group}"
        raise InputError(
            f"{len(groups)} {what} cannot be split: at least {NUM_FOLDS} expected (one per fold); fold=all trains on "
            "every case, data.split={train:[ids],validation:[ids]} on those of your choice"
        )
    members = list(groups.values())
    shuffled = np.arange(len(members))
    np.random.RandomState(SPLIT_SEED).shuffle(shuffled)  # NumPy keeps what this old generator draws
    folds = []
    for chosen in map(set, np.array_split(shuffled, NUM_FOLDS)):
        training = sorted(name for index, names in enumerate(members) if index not in chosen for name in names)
        folds.append((training, sorted(name for index in chosen for name in members[index])))
    return folds


def _checked(
    folds: Sequence[Ids], origin: str, labelled: Mapping[str, Case], excluded: Sequence[str], group: str | None
) -> list[Ids]:
    """Return the folds, sorted and without excluded cases; raise InputError for unusable ids and separated groups."""
    problems, kept = [], []
    for number, (train, validation) in enumerate(folds):
        where = f"fold {number}: " if len(folds) > 1 else ""
        counts = Counter(name for name in (*train, *validation) if name not in excluded)
        problems += [f"{where}case {name} is given {count} times" for name, count in counts.items() if count > 1]
        problems += [f"{where}case {name}: no labelled case of the dataset" for name in counts if name not in labelled]
        left = [sorted(name for name in part if name not in excluded) for part in (train, validation)]
        kept.append((left[0], left[1]))
        if not all(left):
            problems.append(f"{where}no case is left to train or to validate on, data.exclude leaves out the others")
        if group is not None:
            keys = group_of(list(counts), group)
            both = {keys[name] for name in left[0]} & {keys[name] for name in left[1]}
            problems += [f"{where}{key} of data.group is trained and validated on" for key in sorted(both)]
    raise_problems(problems, f"{origin} cannot be used:")
    return kept


def _require_fold(fold: object, rule: SplitRule, count: int) -> None:
    if isinstance(fold, int) and not isinstance(fold, bool) and 0 <= fold < count:
        return
    if count == 1 and not is_split_file(rule):
        raise InputError(f"fold={fold}: the split {_spell(rule)} is a single one, fold=0 or fold=all expected")
    if rule != "five_fold":
        raise InputError(f"fold={fold}: {rule} holds {count} folds, an integer from 0 to {count - 1} or all expected")
    raise InputError(f"fold is {fold!r}: an integer from 0 to {count - 1} expected")


def _spell(rule: SplitRule) -> str:
    return repr(rule) if isinstance(rule, str) else "of given ids"
