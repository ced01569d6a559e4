"""Which results in an output folder may stay: those that the same weights and settings made of the same scan.

Beside its results a folder keeps `.predicted/<case>.json`: what a result was made of, and whether it is complete. The
record is written before the result's first file, and again after its last, so that it is known of every file, whatever
stopped the run, which run it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import naming_unreadable, read_remembered, write_json
from e2enet.data.formats.itk import WITHOUT_VOXELS
from e2enet.data.formats.listing import FILE_ENDINGS, find_ending
from e2enet.data.formats.naming import Case, result_ending
from e2enet.data.formats.opening import files_of

FOLDER = ".predicted"
MAX_LINES = 8  # of a message that lists results
VERSION = 2  # raise it when the same weights and settings come to give other results


@dataclass(frozen=True)
class ResultLedger:
    """The results of one way to predict, in `folder`.

    Attributes:
        folder: Where the results lie.
        file_ending: Of the label images; None: each that of its scan (`naming.result_ending`).
        recipe: What decides a result beside the scan, as plain containers: the weights (`file_digest` of each
            checkpoint) and settings. What only decides speed (device, windows at once) is none of it.
    """

    folder: Path
    file_ending: str | None
    recipe: Mapping[str, Any]

    def path(self, case: Case) -> Path:
        """Where the label image of a case is, or is to be."""
        return self.folder / f"{case.id}{result_ending(case, self.file_ending)}"

    def require_one_ending(self, cases: Sequence[Case]) -> None:
        """InputError where a case has a file of another ending in the folder: it would have two results then."""
        own = set(map(self.path, cases))
        places = [self.folder / f"{case.id}{ending}" for case in cases for ending in FILE_ENDINGS]
        others = [place for place in places if place not in own and place.is_file()]
        if others:
            named = ", ".join(place.name for place in others[:MAX_LINES]) + " .." * (len(others) > MAX_LINES)
            ending = find_ending(others[0].name)
            raise InputError(
                f"output={self.folder}: holds {named} of cases whose results would stand beside with another ending; "
                f"expected another folder, or file_ending={ending}"
            )

    def unfinished(self, cases: Sequence[Case], more: Sequence[str]) -> list[Case]:
        """The cases that are still to be predicted, those with a complete result left out.

        `more` are endings of the files that belong to a result beside the label image. InputError listing every result
        that stands in a case's place and was made otherwise, or of which that is not known: it is never replaced
        unasked, and never taken for this run's.
        """
        left, strange = [], []
        for case in cases:
            if not self._is_there(case):
                left.append(case)
                continue
            record = self._read(case)
            difference = self._difference(case, record)
            if difference:
                strange.append(f"{self.path(case)}: {difference}")
            elif not record["finished"] or not all((self.folder / f"{case.id}{ending}").is_file() for ending in more):
                left.append(case)
            elif not set(more) <= set(record["more"]):
                left.append(case)  # the file is that of an earlier result
        raise_problems(
            strange[:MAX_LINES] + [f"and {len(strange) - MAX_LINES} more"] * (len(strange) > MAX_LINES),
            f"output={self.folder}: holds results that were made otherwise than this run would make them; expected "
            "another folder, or overwrite=true to replace them:",
        )
        return left

    @contextmanager
    def recording(self, case: Case, scan: str, more: Sequence[str]) -> Iterator[None]:
        """The block writes the files of a result; `scan` is the `scan_digest` from before the scan was read."""
        record = {"finished": False, "more": list(more), "scan": scan, "recipe": dict(self.recipe)}
        write_json(self._record(case), record)
        yield
        write_json(self._record(case), record | {"finished": True})

    def _difference(self, case: Case, record: Mapping[str, Any] | None) -> str | None:
        if record is None:
            return "nothing tells how it was made"
        found, wanted = record["recipe"], dict(self.recipe)
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if names:
            return ", ".join(_spell(name, found.get(name), wanted.get(name)) for name in names)
        return None if record["scan"] == scan_digest(case) else "it was made of another scan of this name"

    def _is_there(self, case: Case) -> bool:
        path = self.path(case)
        return path.is_file() and (path.suffix not in WITHOUT_VOXELS or len(files_of(path)) > 1)

    def _read(self, case: Case) -> Any:
        """The record of a case; None where there is none that can be read."""
        record = read_remembered(self._record(case))
        if record is None or not record.keys() >= {"recipe", "scan", "more", "finished"}:
            return None
        return record if isinstance(record["recipe"], dict) and isinstance(record["more"], list) else None

    def _record(self, case: Case) -> Path:
        return self.folder / FOLDER / f"{case.id}.json"


def file_digest(path: Path) -> str:
    """Hash of a file's bytes: equal for copies, whatever their names and dates. InputError where it cannot be read."""
    with naming_unreadable(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def scan_digest(case: Case) -> str:
    """Hash of a case's image files, in the order of its channels."""
    return " ".join(map(_image_digest, case.images))


def _image_digest(path: Path) -> str:
    digests = [file_digest(file) for file in files_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.blake2b(" ".join(digests).encode()).hexdigest()[:32]


def _spell(name: str, found: Any, wanted: Any) -> str:
    """A difference in words; digests tell nobody anything."""
    return "by other checkpoints" if name == "checkpoints" else f"{name} {found} -> {wanted}"
