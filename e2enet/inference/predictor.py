"""Predict scans with one model or an ensemble: read, preprocess, slide, restore to the native grid, write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import require_writable
from e2enet.data.formats.grid import Geometry
from e2enet.data.formats.layout import Case
from e2enet.data.formats.volume import Volume, read_label_on, read_volume, to_ras_frame, write_label_image
from e2enet.data.preparation.preprocess import Preprocessed, preprocess
from e2enet.data.preparation.restore import OnPlane, restore_labels
from e2enet.inference.checkpoint import LoadedModel
from e2enet.inference.finished import OVERLAY, PROBABILITIES, VERSION, ResultLedger, scan_digest
from e2enet.inference.forecast import require_room_to_predict, require_room_to_read
from e2enet.inference.largest_component import ClassLabels, as_stored, keep_largest
from e2enet.inference.overlay import save_overlay
from e2enet.inference.progress import CaseProgress, show_progress
from e2enet.inference.sliding_window import NotFiniteError, count_windows, predict_planes
from e2enet.inference.spool import spool_probabilities
from e2enet.system.memory import empty_caches
from e2enet.system.ranks import SINGLE_PROCESS, Team


@dataclass(frozen=True)
class WindowSettings:
    """Settings of the sliding window; see `predict_planes`."""

    mirror: bool = True
    step: float = 0.5
    batch_size: int = 1
    device: torch.device | str = "cpu"
    amp_dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of one case on the scan's own voxels, in the frame (D, H, W) of `geometry`.

    `labels` (D, H, W) are class values; `image` (D, H, W) is the scan's first channel, None if not requested.
    """

    labels: np.ndarray
    geometry: Geometry
    header: Any
    image: np.ndarray | None


def predict_case(
    models: Sequence[LoadedModel],
    case: Case,
    settings: WindowSettings,
    *,
    keep_image: bool = False,
    on_plane: OnPlane | None = None,
    progress: CaseProgress | None = None,
) -> Prediction:
    """Predict one case with all models (of one plan, networks on `settings.device`), averaging their probabilities.

    The probabilities of the whole scan are never in memory. `on_plane` is called with each of their planes (K, H, W) on
    the scan's grid, in order along D.

    Raises:
        InputError: names the file. The scan cannot be read, has another number of channels or does not fit in memory
            (`forecast`), or the networks' output is not finite.
    """
    first = models[0]
    files = ", ".join(map(str, case.images))
    require_room_to_read(case, first)
    volume = read_volume(case.images, first.plan.depth_axis, case.unit, file_axes=first.file_axes)
    prepared = _preprocess(volume, first, files)
    geometry, header = volume.geometry, volume.header
    image = volume.array[0].copy() if keep_image else None
    del volume  # may be as large as the prepared image
    windows = count_windows(prepared.image.shape[1:], first.plan.patch_size, settings.step)
    planes = predict_planes(
        [model.network for model in models],
        prepared.image,
        first.plan.patch_size,
        step=settings.step,
        mirror_axes=first.mirror_axes if settings.mirror else (),
        batch_size=settings.batch_size,
        device=settings.device,
        amp_dtype=settings.amp_dtype,
        on_window=progress.windows(windows) if progress else None,
        sigmoid=bool(first.scheme.regions),
    )
    try:
        labels = restore_labels(planes, prepared, on_plane, order=first.scheme.order)
    except NotFiniteError as error:
        raise InputError(f"{files}: {error}") from error
    return Prediction(labels, geometry, header, image)


def predict_cases(
    models: Sequence[LoadedModel],
    cases: Sequence[Case],
    output: str | Path,
    settings: WindowSettings,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    overwrite: bool = False,
    keep_largest_of: Sequence[ClassLabels] = (),
    file_ending: str | None = None,
    team: Team = SINGLE_PROCESS,
) -> dict[str, str]:
    """Predict cases into a folder; return {case: reason} of the failed cases, which do not stop the others.

    Write `<case><file_ending>` (None: the ending of its scan) and, on request, `<case>.png` (overlay) and
    `<case>.npz` (float16 probabilities (K, x, y, z) on the native grid). Every file is complete or absent, and the
    label image is written last. A case that the same weights and settings have finished is skipped unless `overwrite`
    (see `finished`). Classes of `keep_largest_of` keep only their largest component
    (`largest_component.keep_largest`); probabilities are not changed. The processes of a `team` share the cases. Each
    returns the failures of all, when all are done.

    Raises:
        InputError: before any prediction. A result would replace an input or a result that was made otherwise, or the
            folder is not writable.
    """
    output = Path(output)
    more = [OVERLAY] * overlay + [PROBABILITIES] * probabilities
    results = ResultLedger(output, file_ending, _recipe(models, settings, keep_largest_of))
    _require_other_files(cases, results)
    results.require_one_ending(cases)
    todo = list(cases) if overwrite else results.unfinished(cases, more)
    if todo:
        require_writable(output)
    if len(todo) < len(cases):
        done = len(cases) - len(todo)
        say(f"{done} of {len(cases)} cases are in {output} already (overwrite=true predicts them again)")
    todo = team.scatter(todo)
    for model in models:
        model.network.to(settings.device)
    failures: dict[str, str] = {}
    with show_progress(len(todo)) as progress:
        for case in todo:
            reason = None
            try:
                with progress.case(case.id), spool_probabilities(output) if probabilities else nullcontext() as spool:
                    scan = scan_digest(case)
                    prediction = predict_case(
                        models,
                        case,
                        settings,
                        keep_image=overlay,
                        on_plane=spool.add if spool else None,
                        progress=progress,
                    )
                    if keep_largest_of:
                        prediction = replace(prediction, labels=keep_largest(prediction.labels, keep_largest_of))
                    with results.recording(case, scan, more):
                        if spool:
                            spool.write(output / f"{case.id}{PROBABILITIES}", prediction.geometry)
                        write_prediction(prediction, case, models[0], results.path(case))
            except (InputError, OSError, RuntimeError, MemoryError, ValueError) as error:
                # torch also raises RuntimeError if a device is out of memory.
                reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            if reason is not None:  # outside the except block: the error, which keeps the case's memory, is gone
                failures[case.id] = reason
                progress.failed(case.id, reason)
                empty_caches()
    everyones = {case: reason for part in team.gather(failures) for case, reason in part.items()}
    return {case.id: everyones[case.id] for case in cases if case.id in everyones}


def _preprocess(volume: Volume, model: LoadedModel, files: str) -> Preprocessed:
    """Return the network's input; InputError that starts with `files` if the scan cannot be used."""
    found, expected = len(volume.array), len(model.channels)
    if found != expected:
        raise InputError(
            f"{files}: {found} channel(s), {expected} expected: the model was trained on {', '.join(model.channels)}"
        )
    try:
        require_room_to_predict(volume, model)
        return preprocess(volume, model.plan)
    except InputError as error:
        raise InputError(f"{files}: {error}") from error


def write_prediction(prediction: Prediction, case: Case, model: LoadedModel, path: Path) -> None:
    """Write the overlay, if the prediction has an image, and last the label image: it marks a complete result."""
    if prediction.image is not None:
        reference = None
        if case.label:
            reference = read_label_on(prediction.geometry, case.label, model.label_map, case.unit)
            reference = model.scheme.without_ignored(reference)
        image, shown = to_ras_frame(prediction.image, prediction.geometry)  # pictures name their sides
        save_overlay(
            path.with_name(f"{case.id}{OVERLAY}"),
            image,
            to_ras_frame(prediction.labels, prediction.geometry)[0],
            labels=model.scheme.names,
            spacing=shown.spacing,
            depth_axis=shown.depth_axis,
            reference=None if reference is None else to_ras_frame(reference, prediction.geometry)[0],
        )
    write_label_image(path, prediction.labels, prediction.geometry, prediction.header)


def _recipe(
    models: Sequence[LoadedModel], settings: WindowSettings, keep_largest_of: Sequence[ClassLabels]
) -> dict[str, Any]:
    """Return what decides results beside the scans; checkpoint order, device and batch size do not."""
    return {
        "version": VERSION,
        "checkpoints": sorted(model.digest for model in models),
        "mirror": settings.mirror,
        "step": settings.step,
        "precision": str(settings.amp_dtype or torch.float32).removeprefix("torch."),
        "keep_largest": sorted(map(as_stored, keep_largest_of), key=lambda one: (isinstance(one, str), one)),
    }


def _require_other_files(cases: Sequence[Case], results: ResultLedger) -> None:
    inputs = {image.resolve() for case in cases for image in case.images}
    clashes = [case.id for case in cases if results.path(case).resolve() in inputs]
    if clashes:
        named = ", ".join(clashes[:5]) + " .." * (len(clashes) > 5)
        raise InputError(
            f"output={results.folder}: the results of {named} would replace the scans themselves; "
            "expected another folder"
        )
