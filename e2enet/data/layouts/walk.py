"""Find the folders that patterns lead to, and report every scan elsewhere, so that none is lost silently."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from e2enet.data.formats.listing import SCAN_LIKE, Listing, list_scans, no_folder, told_of
from e2enet.data.formats.problems import Problem, case_error
from e2enet.data.layouts.pattern import Pattern

HIDDEN = "not taken: hidden, its name begins with a dot"
STRANGE = "not taken: a folder that holds scans, where the layout has none of its name"


class Walk:
    """The folders found by following patterns from a root folder.

    Attributes:
        places: Folder -> the patterns whose files lie in it, each with the field values of the path to it.
        missing: Each pattern with a folder that it names literally and that does not exist.
    """

    def __init__(
        self,
        root: Path,
        patterns: Sequence[Pattern],
        elsewhere: Collection[Path] = (),
        only: Path | None = None,
    ) -> None:
        """Walk the folders.

        Args:
            root: The folder that the patterns are relative to.
            patterns: Patterns of images, labels and unused files.
            elsewhere: Folders of other parts of the dataset. They and their parent folders are skipped.
            only: A folder in or below `root`. If given, only the path to it is followed.
        """
        self.root, self.only = root, only
        self.places: dict[Path, dict[Pattern, dict[str, str]]] = {}
        self.missing: list[tuple[Pattern, Path]] = []
        self._others = [folder for folder in elsewhere if folder != root]
        self._passed: dict[Path, bool] = {}  # folder -> whether fields name its entries
        self._children: dict[Path, list[Path]] = {}
        self._listings: dict[Path, Listing] = {}
        for pattern in patterns:
            self._descend(pattern, root, 0, {})

    def listing(self, folder: Path) -> Listing:
        """The scans of a folder."""
        if folder not in self._listings:
            self._listings[folder] = list_scans(folder)
        return self._listings[folder]

    def problems(self) -> list[Problem]:
        """Return what is not used in the visited folders, and why.

        Of the files in `places`, only those that no pattern could match are reported here.
        """
        visited = {*self.places, *self._passed} if self.only is None else set(self.places)
        above = {parent for place in self.places for parent in place.parents}
        found: list[Problem] = []
        others: list[Path] = []
        for folder in sorted(visited):
            listing = self.listing(folder)
            found += listing.problems()
            if folder not in self.places and listing.files:
                found.append(told_of(folder, listing.files, "not taken: in no folder of a case"))
            beside = [path for path in sorted(folder.iterdir()) if path not in visited and not self._is_elsewhere(path)]
            dead = [path for path in beside if self._passed.get(folder) and _is_dead_folder(path)]
            found += [case_error(path.name, str(no_folder(path)), path) for path in dead]
            others += [path for path in beside if path.is_dir() and list_scans(path).holds_scans]
        empty = [folder for folder in sorted(visited) if self._is_empty(folder, above)]
        hidden = [path for path in others if path.name.startswith(".")]
        strange = [path for path in others if path not in hidden]
        told = {"not taken: a folder without a scan": empty, HIDDEN: hidden, STRANGE: strange}
        return found + [told_of(self.root, paths, reason) for reason, paths in told.items() if paths]

    def _is_empty(self, folder: Path, above: Collection[Path]) -> bool:
        """Whether a folder whose name matched a field is empty. A literal one, such as imagesTs, may be empty."""
        return folder not in above and self._passed.get(folder.parent, False) and not self.listing(folder).holds_scans

    def _descend(self, pattern: Pattern, folder: Path, depth: int, known: dict[str, str]) -> None:
        if depth == len(pattern.folders):
            if self.only is None or folder == self.only:
                self.places.setdefault(folder, {})[pattern] = known
            return
        segment = pattern.segments[depth]
        names = [piece for piece in segment if isinstance(piece, str)]
        is_literal = len(names) == len(segment)
        self._passed[folder] = self._passed.get(folder, False) or not is_literal
        if is_literal:
            child = folder / "".join(names)
            if child.is_dir():
                self._descend(pattern, child, depth + 1, known)
            elif not known:
                self.missing.append((pattern, child))
            return
        for child in self._subfolders(folder):
            fields = pattern.match(depth, child.name, known)
            if fields is not None:
                self._descend(pattern, child, depth + 1, fields)

    def _subfolders(self, folder: Path) -> list[Path]:
        if folder not in self._children:
            inside = [self.only] if self.only is not None else []
            on_the_way = {path for end in inside for path in (end, *end.parents)}
            self._children[folder] = [
                path
                for path in sorted(folder.iterdir() if not inside else on_the_way)
                if path.parent == folder and path.is_dir() and self._is_open(path)
            ]
        return self._children[folder]

    def _is_open(self, path: Path) -> bool:
        return not path.name.startswith(".") and not self._is_elsewhere(path)

    def _is_elsewhere(self, path: Path) -> bool:
        return any(path == other or path in other.parents for other in self._others)


def _is_dead_folder(path: Path) -> bool:
    """Whether a path is a dead link, probably to a folder because its name is not like a scan's."""
    return path.is_symlink() and not path.exists() and not SCAN_LIKE.search(path.name)
