"""Finished results in an output folder: those that the same weights and settings made from the same scan are kept.

A record `.predicted/<case>.json` beside the results says what a result was made from and whether it is complete. It is
written before the result's first file and again after its last. So the origin of every file is known, also after a run
was interrupted.
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
OVERLAY, PROBABILITIES = ".png", ".npz"  # endings of the files beside a label image
MAX_LINES = 8  # of a message that lists results
VERSION = 2  # increase it when the same weights and settings give other results than before


@dataclass(frozen=True)
class ResultLedger:
    """The results in `folder` that certain weights and settings give.

    Attributes:
        folder: Where the results are.
        file_ending: Of the label images; None for that of each scan (`naming.result_ending`).
        recipe: What decides a result beside the scan, in plain containers: the weights (`LoadedModel.digest` of
            each) and settings, but not those that only affect speed (device, batch of windows).
    """

    folder: Path
    file_ending: str | None
    recipe: Mapping[str, Any]

    def path(self, case: Case) -> Path:
        """Return the path of a case's label image, which may not exist yet."""
        return self.folder / f"{case.id}{result_ending(case, self.file_ending)}"

    def require_one_ending(self, cases: Sequence[Case]) -> None:
        """Raise InputError if the folder has a file of a case with another ending: the case would have two results."""
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
        """Return the cases still to be predicted: those without a complete result.

        `more` are endings of the files that belong to a result beside the label image. Raise InputError listing every
        existing result that was made otherwise, or has no record. Such results are never replaced without
        `overwrite`, and never taken for this run's.
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
                left.append(case)  # the extra file belongs to an earlier result
        raise_problems(
            strange[:MAX_LINES] + [f"and {len(strange) - MAX_LINES} more"] * (len(strange) > MAX_LINES),
            f"output={self.folder}: holds results that were made otherwise than this run would make them; expected "
            "another folder, or overwrite=true to replace them:",
        )
        return left

    @contextmanager
    def recording(self, case: Case, scan: str, more: Sequence[str]) -> Iterator[None]:
        """Record the result whose files the block writes; `scan` is the `scan_digest` from before reading the scan.

        Files beside an earlier result that the block does not write are deleted first, unless they are what this run
        would write: overlay and probabilities of another model must not stand beside this one's labels.
        """
        record: dict[str, Any] = {"finished": False, "more": list(more), "scan": scan, "recipe": dict(self.recipe)}
        earlier = self._read(case) or record
        others = [ending for ending in (OVERLAY, PROBABILITIES) if ending in earlier["more"] and ending not in more]
        if earlier["finished"] and all(earlier[key] == record[key] for key in ("recipe", "scan")):
            record["more"] = [*more, *others]
        else:
            for ending in others:
                (self.folder / f"{case.id}{ending}").unlink(missing_ok=True)
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
        """Return the record of a case; None if it is missing or unreadable."""
        record = read_remembered(self._record(case))
        if record is None or not record.keys() >= {"recipe", "scan", "more", "finished"}:
            return None
        return record if isinstance(record["recipe"], dict) and isinstance(record["more"], list) else None

    def _record(self, case: Case) -> Path:
        return self.folder / FOLDER / f"{case.id}.json"


def file_digest(path: Path) -> str:
    """Return a hash of a file's bytes: equal for copies, whatever their names and dates; InputError if unreadable."""
    with naming_unreadable(path), path.open("rb") as stream:
        digest = hashlib.blake2b()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:32]


def scan_digest(case: Case) -> str:
    """Return the hashes of a case's image files, in the order of its channels."""
    return " ".join(map(_image_digest, case.images))


def _image_digest(path: Path) -> str:
    digests = [file_digest(file) for file in files_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.blake2b(" ".join(digests).encode()).hexdigest()[:32]


def _spell(name: str, found: Any, wanted: Any) -> str:
    """Describe a difference in words; digests are not shown, since they mean nothing to a reader."""
    if name == "checkpoints":
        # A digest of several is that of a model of nnU-Net (`checkpoint_digest`).
        return "by other checkpoints" + ", or other plans of nnU-Net" * any(" " in str(digest) for digest in wanted)
    return f"{name} {found} -> {wanted}"
