"""Find what a viewer shows: the predictions of a run or of a folder, with their scans, references and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_remembered
from e2enet.data.formats.labels import LabelTable
from e2enet.inference.finished import FOLDER as RECORDS
from e2enet.runs.folders import CONFIG_FILE
from e2enet.view.case_script import Entry, Pane
from e2enet.view.meaning import Meaning, resolve_meaning
from e2enet.view.trained import Run, named_otherwise, run_of

if TYPE_CHECKING:
    from e2enet.data.formats.naming import Case

VALIDATION = "validation"
NAMED = 5  # cases that a message lists


@dataclass(frozen=True)
class Found:
    """What a viewer is to show, the first origin as it was given, and warnings about what is left out."""

    entries: list[Entry]
    folder: Path
    warnings: list[str]


@dataclass(frozen=True)
class _Predictions:
    """Predictions of one origin: their folder, their files by case, and the run that made them, if it is known."""

    folder: Path
    files: Mapping[str, Path]
    run: Path | None

    @property
    def name(self) -> str:
        """Name of the origin: the run's, with the folder where it is not the validation."""
        if self.run is None:
            return self.folder.resolve().name
        part = "" if self.folder.name == VALIDATION else f", {self.folder.name}"
        return f"{self.run.resolve().name}{part}"


def find_entries(
    sources: Sequence[Path],
    images: Path | None = None,
    labels: Path | None = None,
    label_map: Mapping[int, int] | None = None,
) -> Found:
    """Find the cases to show.

    Args:
        sources: One or two origins of predictions: a run folder (its validation cases), a folder of a run's
            predictions, or any folder of label images. Of two, the cases that both have are shown side by side.
        images: Folder of the scans, named like the predictions, with channels as in nnU-Net's layout; None: those of
            the run's dataset, or `imagesTr` beside `labels` called `labelsTr` (Ts likewise).
        labels: Folder of references; None: those of the run's dataset, or none.
        label_map: Value in the references -> label; None: that of the run, or none.

    Raises:
        InputError: a folder is missing or holds nothing to show, no scans are known, `labels` fits no prediction, or
            the labels of two runs mean different things.
    """
    origins = [_predictions(source) for source in sources]
    names = [origin.name for origin in origins]
    if len(set(names)) < len(names):
        names = [f"{origin.folder.resolve().parent.name}/{name}" for origin, name in zip(origins, names, strict=True)]
    run = run_of({origin.run: name for origin, name in zip(origins, names, strict=True) if origin.run is not None})
    warnings: list[str] = []
    if images is None and (run is None or run.dataset is None):
        images = _beside(labels)
        if images is None:
            raise InputError(_wanted(sources[0], run))
    if run is not None and run.dataset is None:
        warnings.append(f"the dataset of {run.folder} is not used: {run.problem}")
    cases = _cases(run, images, labels)
    chosen = [case for case in origins[0].files if all(case in origin.files for origin in origins)]
    lost = [case for case in chosen if case not in cases]
    shown = [case for case in chosen if case in cases]
    single = sorted({case for origin in origins for case in origin.files} - set(chosen))
    if single:
        warnings.append(f"not shown: {_listed(single)}, which only one of {' and '.join(names)} predicts")
    if lost:
        warnings.append(f"not shown: {_listed(lost)}, whose scans are not in {images or 'the dataset'}")
    if not shown:
        raise InputError("\n  - ".join([f"{sources[0]}: no prediction can be shown with its scan", *warnings]))
    references = [label for case in shown if (label := cases[case].label)]
    if labels is not None:
        warnings += _unscored([case for case in shown if cases[case].label is None], len(shown), labels)
    if label_map is not None and not references:
        raise InputError(f"label map {dict(label_map)}: no reference to renumber; expected --labels FOLDER")
    table = LabelTable() if run is None else run.table
    table = table if label_map is None else replace(table, label_map=label_map)
    if run is not None and run.dataset is not None:
        meaning = replace(Meaning.of_dataset(run.dataset), label_map=table.label_map)
        warnings += named_otherwise(meaning, table, labels, run.name)
    else:
        predicted = [origin.files[case] for origin in origins for case in shown]
        meaning = resolve_meaning(table, labels, references, origins[0].folder, predicted)
    entries = [
        Entry(
            cases[case], tuple(_pane(origin, case, name) for origin, name in zip(origins, names, strict=True)), meaning
        )
        for case in shown
    ]
    return Found(entries, sources[0], warnings)


def _wanted(source: Path, run: Run | None) -> str:
    if run is not None:
        return f"{run.problem}, or --images FOLDER and --labels FOLDER"
    return f"{source}: predictions without a run; expected --images FOLDER, the scans that they were made of"


def _unscored(cases: Sequence[str], num_shown: int, labels: Path) -> list[str]:
    """Return a warning about the cases without a reference in `labels`; InputError if all of them are."""
    if len(cases) == num_shown:
        raise InputError(f"{labels}: has no reference of {_listed(cases)}; expected files named like the predictions")
    return [f"without a score: {_listed(cases)}, whose references are not in {labels}"] * bool(cases)


def probabilities_of(prediction: Path, case: str) -> Path | None:
    """Return the .npz that `predict probabilities=true` wrote beside a prediction; None if there is none."""
    path = prediction.parent / f"{case}.npz"
    # The record names what belongs to the label image: another .npz is of an earlier prediction, or of nnU-Net.
    record = read_remembered(prediction.parent / RECORDS / f"{case}.json") or {}
    return path if path.is_file() and path.suffix in record.get("more", ()) else None


def _predictions(source: Path) -> _Predictions:
    if (source / "sweep.json").is_file():
        raise InputError(f"{source}: a sweep; expected one or two of its runs, or `e2enet report {source} --viewer`")
    run = next((folder for folder in (source, source.resolve().parent) if (folder / CONFIG_FILE).is_file()), None)
    folder = source / VALIDATION if run == source else source
    if run == source and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the predictions of a run that ended (final.predict=true)")
    files = _label_images(folder, "the predictions")
    if not files:
        raise InputError(f"{folder}: holds no label image; expected predictions, or a run folder")
    return _Predictions(folder, files, run)


def _pane(origin: _Predictions, case: str, name: str) -> Pane:
    return Pane(name, origin.files[case], probabilities_of(origin.files[case], case))


def _label_images(folder: Path, what: str) -> dict[str, Path]:
    from e2enet.evaluation.pairing import find_label_images

    problems: list[str] = []
    found = find_label_images(folder, problems)
    raise_problems(problems, f"{what} in {folder} cannot be used:")
    return found


def _cases(run: Run | None, images: Path | None, labels: Path | None) -> dict[str, Case]:
    """Return the cases by id: of the run's dataset, or with the scans and references of the given folders."""
    cases = {} if run is None else run.cases
    if images is not None:
        unit = None if run is None else run.data.get("spacing_unit")
        known = {name: case.label for name, case in cases.items()}
        cases = {case.id: replace(case, label=known.get(case.id), unit=unit) for case in _scans(images)}
    if labels is not None:
        references = _label_images(labels, "the references")
        cases = {name: replace(case, label=references.get(name)) for name, case in cases.items()}
    return cases


def _scans(images: Path) -> list[Case]:
    """Return the cases of a folder of scans; files without a partner of a multi-channel case are left out."""
    from e2enet.data.formats.naming import find_named_cases
    from e2enet.data.formats.problems import Problem

    problems: list[Problem] = []
    return find_named_cases(images, 0, problems=problems)


def _beside(labels: Path | None) -> Path | None:
    """Return imagesTr beside labelsTr, as in the Decathlon's and nnU-Net's layouts; None if there is no such folder."""
    if labels is None or not labels.resolve().name.startswith("labels"):
        return None
    images = labels.resolve().with_name(labels.resolve().name.replace("labels", "images", 1))
    return images if images.is_dir() else None


def _listed(cases: Sequence[str]) -> str:
    return ", ".join(cases[:NAMED]) + f" and {len(cases) - NAMED} more" * (len(cases) > NAMED)
