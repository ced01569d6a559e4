"""A raw dataset as its files and its config describe it, and the checks that all layouts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.listing import FILE_ENDINGS, find_ending, list_scans, no_folder, told_of, unreadable
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, case_error, case_warning, dataset_error
from e2enet.data.formats.scheme import LabelScheme


@dataclass(frozen=True)
class RawDataset:
    """A dataset on disk, before any voxel is read.

    Attributes:
        name: Name for display.
        folder: The dataset's folder.
        channels: `channels[c]` names channel c ("CT", "T1", ..).
        scheme: The labels, numbered as after `label_map`.
        file_ending: Ending of the images, one of `FILE_ENDINGS`.
        training: Labelled cases.
        test: Cases with a label only if the dataset provides one.
        validation: Labelled cases that the publisher set aside for validation; may be empty.
        label_map: Value in the label files -> label. Empty keeps the values. Apply it wherever a label is read.
        regions: Name -> labels united, scored in addition to the labels; may be empty.
        only_trained: Ids of training cases that no fold validates on.
        excluded: Ids that the config leaves out. They are in none of the parts.
        patterns: How the config chose the files: patterns and the texts of the channels. Empty if they were listed.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    scheme: LabelScheme
    file_ending: str
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    validation: tuple[Case, ...] = ()
    label_map: dict[int, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    only_trained: frozenset[str] = frozenset()
    excluded: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """Label -> name, 0 is background; without the ignore label."""
        return self.scheme.names


def build_raw_dataset(
    name: str,
    folder: Path,
    channels: Sequence[str],
    scheme: LabelScheme,
    table: LabelTable,
    *,
    training: Iterable[Case],
    test: Iterable[Case] = (),
    validation: Iterable[Case] = (),
    file_ending: str | None = None,
    only_trained: Iterable[str] = (),
    problems: list[Problem],
) -> RawDataset:
    """Build the dataset after the checks that every layout needs: files exist, no case comes twice, one ending.

    `file_ending=None` takes the ending of the training images. Problems are appended to `problems`. A training or
    validation case whose image or label is missing stays in the dataset, since its other files can be read.
    """
    parts = {"training": tuple(training), "validation": tuple(validation), "test": tuple(test)}
    for part, cases in parts.items():
        counts = Counter(case.id for case in cases)
        problems += [
            case_error(name, f"{part} lists case {name} more than once") for name, n in sorted(counts.items()) if n > 1
        ]
    ids = {part: {case.id for case in cases} for part, cases in parts.items()}
    problems += shared_ids(parts["training"], parts["validation"])
    for first, second in (("training", "test"), ("validation", "test")):
        shared = sorted(ids[first] & ids[second])
        problems += [case_warning(name, f"the id is in {first} and in {second}") for name in shared]
    problems += _shared_labels((*parts["training"], *parts["validation"], *parts["test"]))
    for case in (*parts["training"], *parts["validation"]):
        problems += [case_error(case.id, reason, file) for file in case.files if (reason := unreadable(file))]
    parts["test"] = tuple(_present(parts["test"], problems))
    if not parts["training"] and not any(problem.severity == "error" for problem in problems):
        problems.append(dataset_error("there is no training case, at least one expected", folder))
    ending = file_ending or common_ending(parts["training"], problems)
    label_map = {int(old): int(new) for old, new in table.label_map.items()}
    return RawDataset(
        name,
        folder,
        tuple(channels),
        scheme,
        ending,
        parts["training"],
        parts["test"],
        parts["validation"],
        label_map,
        table.scored_regions,
        frozenset(only_trained),
    )


def shared_ids(training: Iterable[Case], validation: Iterable[Case]) -> list[Problem]:
    """Return an error for each id of a training case and a validation case: one would take the other's place."""
    images = {case.id: case.images[0] for case in training}
    return [
        case_error(
            case.id, f"the id is in training too, as {images[case.id]}: another one for either expected", case.images[0]
        )
        for case in validation
        if case.id in images
    ]


def _present(test: Iterable[Case], problems: list[Problem]) -> Iterator[Case]:
    """Yield the test cases whose images exist, without missing labels. Missing files give warnings, not errors."""
    for case in test:
        lost = [(file, reason) for file in case.images if (reason := unreadable(file))]
        problems += [case_warning(case.id, f"{reason}: the test case is left out", file) for file, reason in lost]
        if lost:
            continue
        if case.label is not None and (reason := unreadable(case.label)):
            problems.append(case_warning(case.id, f"{reason}: the test case is not scored", case.label))
            case = Case(case.id, case.images)
        yield case


def _shared_labels(cases: Iterable[Case]) -> Iterator[Problem]:
    """Warn of each label file that belongs to two cases: probably a mistake in a list, not two scans with one mask."""
    first: dict[Path, str] = {}
    for case in cases:
        if case.label is not None and first.setdefault(case.label, case.id) != case.id:
            yield case_warning(case.id, f"is the label of case {first[case.label]} too", case.label)


def common_ending(cases: Sequence[Case], problems: list[Problem]) -> str:
    """Return the ending that all images share. Several endings are a problem; then return .nii.gz."""
    endings = {ending for case in cases for file in case.images if (ending := find_ending(file.name))}
    if len(endings) > 1:
        problems.append(
            dataset_error(f"training images end in {sorted(endings)}: one ending for the whole dataset is expected")
        )
    return endings.pop() if len(endings) == 1 else ".nii.gz"


def require_folder(folder: Path, expected: str) -> None:
    """Raise InputError if the folder is missing, since nothing can be scanned then."""
    if reason := no_folder(folder):
        raise InputError(f"{folder}: {reason} ({expected} is expected)")


def warn_unlisted(
    folder: Path, known: Iterable[Path | None], problems: list[Problem], endings: Sequence[str] = FILE_ENDINGS
) -> None:
    """Warn of scans in a folder that belong to no case, with a line per reason. A missing folder gives no warning."""
    listing = list_scans(folder, endings)
    known = {path for path in known if path is not None}
    extra = [path for path in listing.files if path not in known]
    if extra:
        problems.append(told_of(folder, extra, "belongs to no case of the dataset"))
    problems += listing.problems()
