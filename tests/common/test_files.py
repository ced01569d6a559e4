"""Files are complete or absent, and JSON errors name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, read_json, require_new_folder, write_csv, write_json


def test_file_appears_complete_and_the_suffix_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "new" / "case.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name.endswith("case.nii.gz") and temporary.name.startswith(".")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["case.nii.gz"]


def test_on_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    with (
        pytest.raises(InputError, match=r"last\.ckpt: cannot be written \(Is a directory\)"),
        atomic_path(tmp_path / "last.ckpt") as temporary,
    ):
        temporary.touch()


def test_folders_are_atomic_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "data") as temporary:
        temporary.mkdir()
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_path(tmp_path / "data") as temporary:
        temporary.mkdir()
        (temporary / "x.txt").write_text("whole")
    assert (tmp_path / "data" / "x.txt").read_text() == "whole"


def test_a_folder_replaces_an_empty_one_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    require_new_folder(tmp_path / "link")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.mkdir()
        (temporary / "x.txt").write_text("whole")
    assert (tmp_path / "far" / "x.txt").read_text() == "whole" and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "link"]


def test_only_a_new_or_empty_folder_is_taken_for_a_new_result(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for free in ("empty", "new", "empty/deep/new"):
        require_new_folder(tmp_path / free)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"] and not any(
        (tmp_path / "empty").iterdir()
    )
    told = "is there and not empty; a new or empty folder"
    with pytest.raises(InputError, match=rf"^{tmp_path}/full: {told} expected$"):
        require_new_folder(tmp_path / "full")
    with pytest.raises(InputError, match=rf"^--output x: {told}, or an earlier viewer, expected$"):
        require_new_folder(tmp_path / "full", "--output x", also="an earlier viewer")
    file = tmp_path / "full" / "file"
    for path in (file, file / "below"):
        with pytest.raises(InputError, match=f"^{path}: {file} is a file; a folder expected$"):
            require_new_folder(path)


def test_json_takes_numpy_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"n": np.int64(3), "v": np.array([1.5, 2.5]), "p": Path("x/y")})
    assert read_json(tmp_path / "a.json") == {"n": 3, "v": [1.5, 2.5], "p": "x/y"}


@pytest.mark.parametrize("content", [b"{broken", b"\xff\xfe\x00"])
def test_bad_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"dataset\.json: not valid JSON"):
        read_json(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice in one object"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("9" * 5000, "4300"),
        ("[" * 100_000, "recursion"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ('{"a":' * 51 + "1" + "}" * 51, "nested more than 50 deep"),
    ],
    ids=["key-twice", "half-a-character", "long-number", "endless", "deep-lists", "deep-objects"],
)
def test_json_that_python_would_read_and_stumble_over(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=rf"(?s)a\.json: not valid JSON.*{message}"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 50 + "]" * 50)
    assert read_json(tmp_path / "a.json")


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")


def test_csv_columns_in_order_of_appearance(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"case": "a", "dice": 0.5}, {"case": "b", "nsd": 1}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["case,dice,nsd", "a,0.5,", "b,,1"]


def test_csv_does_not_lose_a_column_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nsd"):
        write_csv(tmp_path / "a.csv", [{"case": "b", "nsd": 1}], columns=["case"])
    assert not list(tmp_path.iterdir())
