"""nnU-Net's five-fold split, exactly, so that folds can be compared with published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from e2enet.common.errors import InputError

NUM_FOLDS = 5
SPLIT_SEED = 12345


def five_fold(case_ids: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
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
