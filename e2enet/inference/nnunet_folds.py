"""The folds of a model folder of nnU-Net v2, which predict together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from e2enet.common.errors import raise_problems
from e2enet.inference.nnunet_model import CHECKPOINTS, PLANS

PREFIX = "fold_"
ALL_CASES = "all"  # fold_all trains on every case: it forms no ensemble with single folds


def nnunet_folds(
    folder: Path, *, allow_missing: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Return the final checkpoint of each fold in a model folder of nnU-Net, by number; [] for any other folder.

    fold_all is taken only if there is no numbered fold. nnU-Net does not store how many folds it planned, so folds
    after the last one are not missed.

    Args:
        folder: Any folder.
        allow_missing: Whether folds without a final checkpoint, and gaps in the numbers, are left out.
        say: Takes a line that names the folds taken, and one for each that is left out.

    Raises:
        InputError: lists the folds that are unfinished or lacking, unless `allow_missing`; or no fold is finished.
    """
    if not (folder / PLANS).is_file():
        return []
    names = {path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*") if path.is_dir()}
    numbers = {int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,2}", name)}
    if not numbers and ALL_CASES not in names:
        return []
    wanted = [str(number) for number in range(max(numbers) + 1)] if numbers else [ALL_CASES]
    final = {name: folder / f"{PREFIX}{name}" / CHECKPOINTS[0] for name in wanted}
    taken = [name for name in wanted if final[name].is_file()]
    missing = [f"{PREFIX}{name}: {_state(final[name].parent)}" for name in wanted if name not in taken]
    if not (allow_missing and taken):
        advice = "allow_missing_folds goes on without them" if taken else "none is left"
        raise_problems(missing, f"{folder}: folds of this model are missing ({advice}):")
    for line in missing:
        say(f"warning: predicted without {line}")
    if numbers and ALL_CASES in names:
        say(f"{folder}: {PREFIX}{ALL_CASES} is left out, since there are numbered folds")
    say(f"{folder}: {', '.join(PREFIX + name for name in taken)} of a model of nnU-Net")
    return [final[name] for name in taken]


def _state(fold: Path) -> str:
    """Say why a fold cannot be used."""
    if not fold.is_dir():
        return "is not there"
    others = [name for name in CHECKPOINTS[1:] if (fold / name).is_file()]
    return f"unfinished, holds {' and '.join(others) if others else 'no checkpoint'}; {CHECKPOINTS[0]} expected"
