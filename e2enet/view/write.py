"""Write a viewer: one folder with a page, its cases as scripts, and NiiVue, which opens from disk without a server."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from e2enet.common.console import track
from e2enet.common.errors import raise_problems
from e2enet.common.files import atomic_path, remove_temporaries, require_new_folder
from e2enet.inference.contours import DASHES, label_styles
from e2enet.view.agreement import DIFFERENCES
from e2enet.view.case_script import Entry, grid_problems, script, write_case
from e2enet.view.meaning import Meaning

PAGE = "index.html"
CASES = "cases"  # the folder of the cases; after a replacement, with a sign of its own behind
LIST = "list.js"
MARK = "// A viewer of e2enet: replaced by the next one that is written to this folder.\n"
IGNORED_COLOUR = "#8A94A3"
# Beside the classes' colours, and apart from each other for colour-blind readers.
DIFFERENCE_COLOURS = ("#FF4D4D", "#4DB2FF", "#FFE04D")


@dataclass(frozen=True)
class Viewer:
    """A written viewer: its page, the number of cases and their bytes.

    `num_rounded` counts the cases that are stored as 8 bit, `num_cropped` those of them that were cropped to their
    labels. A large scan without any label stays whole.
    """

    page: Path
    num_cases: int
    num_bytes: int
    num_rounded: int
    num_cropped: int

    def describe(self) -> str:
        """Return a line for the console."""
        cases = f"{self.num_cases} case{'s' * (self.num_cases != 1)}, {spell_size(self.num_bytes)}"
        rounded = f", {self.num_rounded} of them stored as 8 bit" * bool(self.num_rounded)
        cropped = f" and {self.num_cropped} cropped to the labels" * bool(self.num_cropped)
        return f"{cases}{rounded}{cropped}; open {self.page} in a browser"


def spell_size(num_bytes: int) -> str:
    """Format a size as "400 kB", "1.4 MB" or "12 MB"."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e6:.{1 if num_bytes < 1e7 else 0}f} MB"


def require_viewer_folder(folder: Path) -> None:
    """Raise InputError if `folder` holds anything but a viewer: nothing else is ever replaced."""
    if not is_viewer(folder):
        require_new_folder(folder, also="an earlier viewer")


def is_viewer(folder: Path) -> bool:
    """Whether the folder was written by `write_viewer`."""
    path = folder / LIST
    return path.is_file() and path.read_bytes().startswith(MARK.encode())


def write_viewer(folder: Path, title: str, entries: Sequence[Entry], *, whole: bool = False) -> Viewer:
    """Write the viewer of some cases; an earlier viewer in `folder` is replaced when the new one is complete.

    At no moment is there neither: whatever stops this, `folder` shows the earlier viewer or the new one.

    Args:
        folder: Where the viewer goes.
        title: Heading of the page.
        entries: The cases in the order of their numbers; the page sorts them by Dice.
        whole: Whether large scans are kept whole with their own values.

    Raises:
        InputError: the folder holds something else, or a file cannot be shown (`write_case`).
    """
    require_viewer_folder(folder)
    raise_problems([problem for entry in entries for problem in grid_problems(entry)], "these cases cannot be shown:")
    meanings = [_plain(entry.meaning) for entry in entries]
    different = [meaning for index, meaning in enumerate(meanings) if meaning not in meanings[:index]]
    with _place_of(folder) as place:
        earlier = list(place.glob(f"{CASES}*"))
        name = f"{CASES}-{uuid.uuid4().hex[:8]}" if earlier else CASES
        with atomic_path(place / name) as cases:
            cases.mkdir()
            lines = [
                {**write_case(cases, number, entry, whole=whole), "meaning": different.index(meanings[number])}
                for number, entry in enumerate(track(entries, "Writing the viewer's cases"))
            ]
        content = {"title": title, "folder": name, "meanings": different, "cases": lines}
        content["differences"] = [
            {"value": value, "name": name, "colour": colour}
            for (value, name), colour in zip(DIFFERENCES.items(), DIFFERENCE_COLOURS, strict=True)
        ]
        for source in files("e2enet.view").joinpath("page").iterdir():
            _replace(place / source.name, source.read_bytes())
        # The list names the folder of its cases: until it is replaced, the page shows the earlier ones.
        _replace(place / LIST, (MARK + script("list(", content)).encode("ascii"))
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)
    return Viewer(
        folder / PAGE,
        len(lines),
        sum(line["bytes"] for line in lines),
        sum(not line["exact"] for line in lines),
        sum(line["shape"] != line["whole_shape"] for line in lines),
    )


@contextmanager
def _place_of(folder: Path) -> Iterator[Path]:
    """Yield the folder to write a viewer to: the earlier viewer itself, else a new one that then becomes `folder`."""
    if is_viewer(folder):
        remove_temporaries(folder)
        yield folder
        return
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        yield temporary


def _replace(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _plain(meaning: Meaning) -> dict[str, object]:
    """Return names and colours of labels as the page needs them; the colours are those of overlays and reports."""
    scheme = meaning.scheme
    styles = label_styles(scheme.names)
    labels = [
        {
            "value": value,
            "name": scheme.file_names[value],
            "colour": style.colour,
            # After the seventh class the colours repeat, with dashed and then dotted outlines.
            "dash": DASHES.index(style.dashes),
            "ignored": False,
        }
        for value, style in styles.items()
    ]
    if scheme.ignore is not None:
        name = scheme.file_names[scheme.ignore]
        labels.append({"value": scheme.ignore, "name": name, "colour": IGNORED_COLOUR, "dash": 2, "ignored": True})
    regions = [{"name": name, "labels": list(united)} for name, united in {**scheme.regions, **meaning.regions}.items()]
    return {"labels": labels, "regions": regions, "learned": bool(scheme.regions)}
