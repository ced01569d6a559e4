"""Prepares the missing cases of a dataset in parallel; on disk each case is complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.data.formats.case import read_case
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.planning.case_workers import work_on_cases
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.forecast import forecast
from e2enet.data.preparation.preprocess import preprocess, preprocess_inside, preprocess_label
from e2enet.data.preparation.store import CaseStore, PreparedCase, claim, is_claimed
from e2enet.system.locks import locked_folder
from e2enet.system.threads import one_torch_thread


def prepare_cases(
    dataset: RawDataset, cases: Iterable[Case], plan: Plan, folder: str | Path, workers: int | None = None
) -> list[PreparedCase]:
    """Preprocess the cases that are not yet in the folder and return all, in the given order.

    A case is prepared again if the size or time of one of its raw files changed. Another spacing, depth axis,
    normalisation, label map, ignore label or regions has its own cases (`CaseStore`). `workers` processes share the
    work (None: as many as cores and free memory allow; 0: this process). The result does not depend on their number. A
    run that is killed leaves no half-finished case. Two runs at once take turns. One InputError lists all cases that
    cannot be used, after the others are done.
    """
    store = CaseStore.of(folder, dataset, plan)
    wanted = list(cases)
    found = [store.find(case) for case in wanted]
    if None in found:
        with locked_folder(Path(folder), f"Preparing {dataset.name}"):
            claim(Path(folder), dataset)
            store = CaseStore.of(folder, dataset, plan)
            # Searched again: another run may have prepared them while this one waited.
            _prepare_missing(store, [case for case in wanted if store.find(case) is None], workers)
        found = [store.find(case) for case in wanted]
    elif not is_claimed(Path(folder)) and os.access(folder, os.W_OK):  # prepared by an earlier version, or moved
        with locked_folder(Path(folder), f"Preparing {dataset.name}"):
            claim(Path(folder), dataset)
    prepared = []
    for case, one in zip(wanted, found, strict=True):
        if one is None:
            raise InputError(f"case {case.id}: its raw files changed while they were prepared; start again")
        prepared.append(one)
    return prepared


def prepare_case(store: CaseStore, case: Case) -> None:
    """Read, crop, normalise, resample and store one case. InputError if it cannot be used."""
    with one_torch_thread():
        key = store.key(case)
        volumes = read_case(store.dataset, case, store.plan.depth_axis)
        label = volumes.label
        result = preprocess(volumes.image, store.plan)
        del volumes  # lowers the peak of memory
        store.forget(case)
        store.write_image(case, result.image)
        depth, height, width = result.image.shape[1:]
        if label is not None:
            label = preprocess_label(label, result)
            store.write_label(case, label)
            store.write_inside(case, preprocess_inside(result, label))
        store.finish(case, key, (depth, height, width))


def _prepare_missing(store: CaseStore, cases: list[Case], workers: int | None) -> None:
    if not cases:
        return
    dataset = store.dataset
    expected = forecast(dataset, cases, store.plan, store.folder, workers)
    say(f"{dataset.name}: {expected}")
    work_on_cases(
        partial(prepare_case, store),
        cases,
        expected.load.workers,
        f"Preparing {dataset.name}",
        lambda failed: f"{dataset.folder}: {failed} of {len(cases)} cases cannot be prepared",
    )
