"""A viewer takes the place of an earlier one and of nothing else, and a kill never leaves the user without either."""

from __future__ import annotations

import gzip
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.view.write import MARK, write_viewer
from tests.view.conftest import handed_over, reference_values, save
from tests.view.test_viewer_folder import PAGE, entry_of


def cases_of(viewer: Path) -> Path:
    """Return the folder of cases that a viewer's list names."""
    return viewer / handed_over(viewer / "list.js")["folder"]


def test_only_a_viewer_is_replaced(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "viewer"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"viewer: is there and not empty; .* or an earlier viewer, expected"):
        write_viewer(folder, "title", [entry_of(dataset)])
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    write_viewer(folder, "first", [entry_of(dataset), entry_of(dataset, "good")])
    viewer = write_viewer(folder, "second", [entry_of(dataset)])
    assert (folder / "list.js").read_text().startswith(MARK) and "second" in (folder / "list.js").read_text()
    assert [path.name for path in cases_of(folder).iterdir()] == ["0.js"]
    assert list(folder.glob("cases*")) == [cases_of(folder)] and not list(tmp_path.rglob(".tmp-*"))
    assert viewer.num_cases == 1 and viewer.page == folder / "index.html"
    size = (cases_of(folder) / "0.js").stat().st_size
    assert viewer.describe() == f"1 case, {size / 1000:.0f} kB; open {folder / 'index.html'} in a browser"


def test_a_failure_leaves_the_earlier_viewer(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "viewer"
    write_viewer(folder, "first", [entry_of(dataset)])
    path = save(dataset / "predictions" / "good.nii.gz", reference_values())
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(content[:-100]))  # the header is right, the voxels are cut off
    with pytest.raises(InputError, match=r"good.nii.gz: the voxels cannot be read"):
        write_viewer(folder, "second", [entry_of(dataset), entry_of(dataset, "good")])
    assert "first" in (folder / "list.js").read_text() and not list(tmp_path.rglob(".tmp-*"))


def test_a_kill_at_any_moment_leaves_the_earlier_or_the_new_viewer(
    dataset: Path, tmp_path: Path, read_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename in turn is the one before which the process ends; nothing is cleaned up after it."""
    folder = tmp_path / "viewer"
    write_viewer(folder, "first", [entry_of(dataset)])
    rename, titles = os.replace, []
    for number in range(40):
        left = number

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
                monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
                raise Kill
            rename(source, target)

        with monkeypatch.context() as patch, suppress(Kill):
            patch.setattr(os, "replace", replace)
            write_viewer(folder, f"{number}", [entry_of(dataset), entry_of(dataset, "good")])
        monkeypatch.undo()
        content = read_script(folder / "list.js")
        titles.append(content["title"])
        for index, case in enumerate(content["cases"]):
            assert (folder / content["folder"] / f"{index}.js").stat().st_size == case["bytes"]
        assert all((folder / page.name).read_bytes() == page.read_bytes() for page in PAGE.iterdir())
        if left >= 0:
            break
    # Two cases, their folder, the files of the page and the list.
    assert titles == ["first"] * (2 + 1 + len(list(PAGE.iterdir())) + 1) + [f"{number}"]
    assert list(folder.glob("cases*")) == [cases_of(folder)] and not list(tmp_path.rglob(".tmp-*"))


class Kill(BaseException):
    """Ends the process."""
