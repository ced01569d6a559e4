"""Prepared files that nothing uses any more: named, never deleted, since another plan or a moved folder may."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from e2enet.common.workload import gigabytes
from e2enet.data.preparation.store import CaseStore

MOST_NAMES = 10


def find_leftovers(store: CaseStore) -> list[str]:
    """A line about prepared cases whose raw case is gone, and one about cases prepared for other plans."""
    dataset = store.dataset
    known = {case.id for case in (*dataset.training, *dataset.validation, *dataset.test)}
    orphans = sorted(store.stored_ids() - known)
    others = sorted(path for path in store.folder.parent.glob("cases_*") if path != store.folder)
    lines = []
    if orphans:
        size = _size(path for name in orphans for path in store.folder.glob(f"{name}.*"))
        named = ", ".join(orphans[:MOST_NAMES]) + f" and {len(orphans) - MOST_NAMES} more" * (len(orphans) > MOST_NAMES)
        lines.append(f"no raw case any more, not used, may be deleted: {named} ({size} in {store.folder})")
    if others:
        size = _size(path for folder in others for path in folder.iterdir())
        lines.append(f"prepared for other plans, may be deleted: {', '.join(path.name for path in others)} ({size})")
    return lines


def _size(paths: Iterable[Path]) -> str:
    return gigabytes(sum(path.stat().st_size for path in paths if path.is_file()))
