"""BraTS as the challenges of 2020 and 2021 hand it out: a folder per case, a file per modality.

```
BraTS2021/BraTS2021_00000/BraTS2021_00000_flair.nii.gz, .._t1.nii.gz, .._t1ce.nii.gz, .._t2.nii.gz, .._seg.nii.gz
```

Cases without `_seg` are test cases. Labels are 1, 2 and 4: the config maps 4 to 3. The same scans in
Decathlon layout (Task01_BrainTumour, with labels of another order) are read by `msd`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset, finish, require_folder
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.listing import FILE_ENDINGS, Listing, list_scans, no_folder, told_of
from e2enet.data.formats.naming import Case, case_id
from e2enet.data.formats.problems import Problem, case_error, case_warning

# Channel -> end of the file's name; in the order of the Decathlon's Task01.
MODALITIES = {"FLAIR": "flair", "T1w": "t1", "T1gd": "t1ce", "T2w": "t2"}
LABEL = "seg"


def scan_brats(folder: str | Path, problems: list[Problem], table: LabelTable) -> RawDataset:
    """Read a folder of BraTS cases as far as it can be read; what is wrong is added to `problems`.

    Raises InputError where no folder in it holds NIfTI files, or where the table names no labels.
    """
    folder = Path(folder)
    if table.names is None:
        raise InputError("BraTS case folders bring no names of their labels: give them as `labels`")
    require_folder(folder, "BraTS, holding a folder per case,")
    labels = resolve_labels(None, table, problems)
    cases = read_case_folders(folder, find_case_folders(folder), problems)
    if not cases and not any(problem.severity == "error" for problem in problems):
        expected = f"{folder}: holds no case folder like BraTS2021_00000/BraTS2021_00000_flair.nii.gz"
        raise InputError("\n  - ".join([expected, *map(str, problems)]))
    training = [case for case in cases if case.label is not None]
    unlabelled = [folder / case.id for case in cases if case.label is None]
    if unlabelled:
        problems.append(told_of(folder, unlabelled, f"has no _{LABEL} file: a test case"))
    test = [case for case in cases if case.label is None]
    return finish("BraTS", folder, tuple(MODALITIES), labels, table, training=training, test=test, problems=problems)


def find_case_folders(folder: Path) -> list[Path]:
    """The subfolders, sorted, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def holds_case(folder: Path) -> bool:
    """Whether a folder is a case, by the name of its FLAIR image."""
    return any((folder / f"{folder.name}_{MODALITIES['FLAIR']}{ending}").is_file() for ending in FILE_ENDINGS)


def read_case_folders(root: Path, folders: Iterable[Path], problems: list[Problem]) -> list[Case]:
    """Cases of these folders in `root`; what lacks a modality or is no case is left out and added to `problems`."""
    listings = [list_scans(folder) for folder in folders]
    if root not in [listing.folder for listing in listings]:
        loose = list_scans(root)
        problems += [told_of(root, loose.files, "not taken: in no folder of a case")] if loose.files else []
        problems += [*loose.problems(), *_lost_folders(root, loose.files)]
    empty = [listing.folder for listing in listings if not listing.holds_scans]
    problems += [told_of(root, empty, "not taken: a folder without a scan")] if empty else []
    cases = [_read_case(listing, problems) for listing in listings]
    return [case for case in cases if case is not None]


def _lost_folders(root: Path, scans: Sequence[Path]) -> list[Problem]:
    """Links to case folders that are gone, and hidden folders of scans; `scans` are told of already."""
    others = [path for path in sorted(root.iterdir()) if path not in scans]
    dead = [path for path in others if path.is_symlink() and not path.exists()]
    hidden = [path for path in others if path.name.startswith(".") and path.is_dir() and list_scans(path).holds_scans]
    problems = [case_error(path.name, str(no_folder(path)), path) for path in dead]
    return problems + [told_of(root, hidden, "not taken: hidden, its name begins with a dot")] * bool(hidden)


def _read_case(listing: Listing, problems: list[Problem]) -> Case | None:
    """The case of a folder; None without a NIfTI file, or where a modality is missing."""
    folder, case = listing.folder, listing.folder.name
    problems += listing.problems()
    if not listing.files:
        return None
    found: dict[str, Path] = {}
    strange = []
    for file in sorted(listing.files, key=lambda file: file.suffix):  # .gz first
        part = case_id(file.name).removeprefix(f"{case}_")
        if part not in (*MODALITIES.values(), LABEL) or part == case_id(file.name):
            strange.append(file.name)
        elif part in found:
            problems.append(case_error(case, f"is there twice, also as {found[part].name}", file))
        else:
            found[part] = file
    ending = listing.files[0].name.removeprefix(case_id(listing.files[0].name))
    missing = [f"{case}_{part}{ending}" for part in MODALITIES.values() if part not in found]
    if LABEL not in found and strange:
        missing.append(f"{case}_{LABEL}{ending}")  # such as W39_1998.09.19_Segm.nii of BraTS20_Training_355
    if missing:
        hint = f"; not expected: {', '.join(strange)} (rename it?)" if strange else ""
        problems.append(case_error(case, f"{', '.join(missing)} missing{hint}", folder))
        return None
    if strange:
        problems.append(case_warning(case, f"not expected and not used: {', '.join(strange)}", folder))
    return Case(case, tuple(found[part] for part in MODALITIES.values()), found.get(LABEL))
