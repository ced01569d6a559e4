"""List the files in a folder that look like scans: taken, or left out with a reported reason.

Every layout, prediction and evaluation list their files here, so that none of them loses a scan silently.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2enet.common.files import TEMPORARY
from e2enet.data.formats.problems import Problem

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr", ".gipl")  # read by SimpleITK
FILE_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
RESULT_ENDINGS = FILE_ENDINGS[:-1]  # of results in any orientation; .gipl stores no directions of axes
# Scans of other formats, and of supported ones under a changed name: x.nii.gz.part, x.NII.
SCAN_LIKE = re.compile(
    r"\.(nii(?![a-z])|(niigz|tiff?|nrrd|nhdr|mha|mhd|mgz|mgh|mnc|hdr|img|dcm|dicom|ima|gipl)(\.gz)?$)", re.IGNORECASE
)
GZIP = b"\x1f\x8b"
MAX_NAME_BYTES = 200  # file systems allow 255; names derived from a case's need some of them
NAME_WORDS = f"of at most {MAX_NAME_BYTES} bytes and without control characters"
NAMED = 3  # files that a line names; the rest is counted


@dataclass(frozen=True)
class Listing:
    """The files of a folder that look like scans.

    Attributes:
        folder: The folder.
        files: Files of the expected endings, sorted. Dead links are included, so that their case fails.
        left: Reason -> files that are not taken.
        companions: The `._x.nii.gz` that macOS leaves beside files. They are no scans.
    """

    folder: Path
    files: tuple[Path, ...]
    left: dict[str, list[Path]]
    companions: tuple[Path, ...]

    @property
    def holds_scans(self) -> bool:
        """Whether anything looks like a scan, taken or not."""
        return bool(self.files or self.left)

    @property
    def num_left(self) -> int:
        """How many files are not taken."""
        return sum(map(len, self.left.values()))

    def endings(self) -> str:
        """Return the counts by ending, such as `8 of .nii.gz, 1 of .mha`; empty if nothing looks like a scan."""
        paths = (*self.files, *(path for paths in self.left.values() for path in paths if path != self.folder))
        counts = Counter(ending_of(path.name) for path in paths)
        return ", ".join(f"{count} of {ending}" for ending, count in sorted(counts.items()))

    def problems(self) -> list[Problem]:
        """Return a warning per reason. Companions give none."""
        return [told_of(self.folder, paths, reason) for reason, paths in sorted(self.left.items())]


def note_companions(folders: Iterable[Path]) -> list[str]:
    """Return a line with the number of companions in these folders, if there are any. They are harmless."""
    found = [path for folder in sorted(set(folders)) for path in list_scans(folder).companions]
    text = "passed over: what macOS keeps of other files"
    return [f"{text} ({len(found)} named like {found[0].name}, {found[0].parent})"] if found else []


def list_scans(folder: Path, endings: Sequence[str] = FILE_ENDINGS) -> Listing:
    """List the files directly in a folder that look like scans; none if there is no such folder.

    A file or a dead link in the folder's place is listed as left out.
    """
    reason = no_folder(folder)
    if reason is not None:
        lost = {f"not looked into: {reason}": [folder]} if os.path.lexists(folder) else {}
        return Listing(folder, (), lost, ())
    return sort_out(folder, folder.iterdir(), endings)


def sort_out(folder: Path, paths: Iterable[Path], endings: Sequence[str] = FILE_ENDINGS) -> Listing:
    """List those of some paths in or below a folder that look like scans."""
    files, companions, left = list[Path](), list[Path](), dict[str, list[Path]]()
    for path in sorted(paths):
        if not SCAN_LIKE.search(path.name) and not path.name.endswith(tuple(endings)):
            continue
        if path.name.endswith(".img") and ".hdr" in endings and path.with_suffix(".hdr").exists():
            continue  # the voxels of a .hdr
        if is_companion(path):
            companions.append(path)
        elif (reason := _reason(folder, path, endings)) is None:
            files.append(path)
        else:
            left.setdefault(reason, []).append(path)
    return Listing(folder, tuple(files), left, tuple(companions))


def is_companion(path: Path) -> bool:
    """Whether a file holds macOS's attributes of another file: `._x.nii.gz`, which is no gzip stream."""
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(len(GZIP)) != GZIP
    except OSError:
        return True


def is_file_name(name: str) -> bool:
    """Whether a file name works on any disk and any terminal: `NAME_WORDS`, in the system's encoding."""
    return name.isprintable() and Path(name).name == name and len(os.fsencode(name)) <= MAX_NAME_BYTES


def unreadable(path: Path) -> str | None:
    """Return why there is no file to read at a path, or None if there is one."""
    if os.path.isfile(path):
        return None if os.access(path, os.R_OK) else "the permission to read it is lacking"
    return "a folder, a file expected" if os.path.isdir(path) else _absent(path, "file")


def no_folder(path: Path) -> str | None:
    """Return why there is no folder at a path, or None if there is one. Raise OSError if access is denied."""
    if path.is_dir():
        return None
    return "a file, a folder expected" if path.exists() else _absent(path, "folder")


def find_ending(name: str, endings: Sequence[str] = FILE_ENDINGS) -> str | None:
    """Return the ending out of `endings` that a name has, or None."""
    return next((ending for ending in endings if name.endswith(ending)), None)


def spell_endings(endings: Sequence[str] = FILE_ENDINGS) -> str:
    """Return endings in words: .nii.gz, .mha or .nrrd."""
    return " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))


def told_of(folder: Path, paths: Sequence[Path], reason: str) -> Problem:
    """Return a warning for files that share a reason. Several are given by folder, number and a few names."""
    if len(paths) == 1:
        return Problem(None, "warning", reason, _spelled(str(paths[0])))
    names = [_spelled(path.relative_to(folder).as_posix()) for path in paths]
    named = ", ".join(names[:NAMED]) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)
    return Problem(None, "warning", f"{reason} ({len(paths)}: {named})", str(folder))


def ending_of(name: str) -> str:
    """Return the part of a name by which it looks like a scan: .nii.gz, .mha, .nii.gz.part."""
    match = SCAN_LIKE.search(name)
    return name[match.start() :] if match else Path(name).suffix


def _spelled(path: str) -> str:
    """Return a path as a terminal can show it."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _absent(path: Path, kind: str) -> str:
    return f"a link whose target {os.readlink(path)} is not there" if path.is_symlink() else f"no such {kind}"


def _reason(folder: Path, path: Path, endings: Sequence[str]) -> str | None:
    """Return why a file that looks like a scan is not taken, or None if it is."""
    expected = spell_endings(endings)
    if any(part.startswith(TEMPORARY) for part in path.relative_to(folder).parts):
        return "not taken: half written, by a run that is at work or was killed"
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return "not taken: hidden, its name begins with a dot"
    if not path.name.endswith(tuple(endings)):
        return f"not taken: ends in {ending_of(path.name)}, {expected} expected"
    if not is_file_name(path.name):
        return f"not taken: a name {NAME_WORDS} expected, in the system's encoding"
    return "not taken: a folder, a file expected" if os.path.isdir(path) else None
