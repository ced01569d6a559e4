"""The folder of a viewer: every voxel and affine comes back from its scripts, and nothing else is ever overwritten."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import Geometry
from e2enet.data.formats.naming import Case
from e2enet.data.formats.scheme import LabelScheme
from e2enet.inference.contours import COLOURS
from e2enet.inference.spool import spool_probabilities
from e2enet.view import volumes
from e2enet.view.agreement import CONFUSED, EXTRA, MISSED
from e2enet.view.case_script import Entry, Pane, write_case
from e2enet.view.meaning import Meaning
from e2enet.view.write import write_viewer
from tests.view.conftest import (
    LABELS,
    MARKUP,
    SHAPE,
    as_ras,
    awkward_affine,
    predicted_values,
    reference_values,
    save,
    scan_values,
)

SCHEME = LabelScheme({value: name for name, value in LABELS.items()})
PAGE = Path(__file__).parents[2] / "e2enet" / "view" / "page"


def entry_of(dataset: Path, case: str = "poor", *, scheme: LabelScheme = SCHEME, label: bool = True) -> Entry:
    images = (dataset / "imagesTs" / f"{case}.nii.gz",)
    reference = dataset / "labelsTs" / f"{case}.nii.gz" if label else None
    pane = Pane("network", dataset / "predictions" / f"{case}.nii.gz")
    return Entry(Case(case, images, reference), (pane,), Meaning(scheme, channels=("CT",)))


def test_voxels_and_affines_come_back(dataset: Path, tmp_path: Path, read_script: Any, decode: Any) -> None:
    line = write_case(tmp_path, 7, entry_of(dataset))
    content = read_script(tmp_path / "7.js")
    expected = {"scan": as_ras(scan_values(1)), "reference": as_ras(reference_values())}
    expected["prediction"] = as_ras(predicted_values())
    found = {"scan": content["channels"][0]["data"], "reference": content["reference"]} | content["panes"][0]
    for name, image in expected.items():
        again = decode(found[name])
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(image.dataobj))
        np.testing.assert_allclose(again.affine, image.affine, atol=1e-5)
        assert again.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(again.header.get_zooms(), (1.0, 1.5, 2.0), atol=1e-5)
    assert decode(found["scan"]).get_data_dtype() == np.int16
    assert content["channels"][0]["name"] == "CT"
    low, high = np.percentile(scan_values(1), (0.5, 99.5))
    assert content["channels"][0]["window"] == pytest.approx([low, high])
    inside = scan_values(1)[(predicted_values() > 0) | (reference_values() > 0)]
    low, high = np.percentile(inside, (5, 95))
    half = (high - low) / 2
    assert content["channels"][0]["label_window"] == pytest.approx([low - half, high + half])
    assert line["exact"] and line["shape"] == line["whole_shape"] == [24, 20, 12]
    assert line["bytes"] == (tmp_path / "7.js").stat().st_size


def test_the_difference_and_where_the_page_opens(dataset: Path, tmp_path: Path, read_script: Any, decode: Any) -> None:
    write_case(tmp_path, 0, entry_of(dataset))
    content = read_script(tmp_path / "0.js")
    difference = np.asarray(decode(content["panes"][0]["difference"]).dataobj)
    assert np.bincount(difference.ravel()).tolist() == [np.prod(SHAPE) - 96 - 84 - 72, 96, 84, 72]
    predicted, true = (np.asarray(as_ras(values).dataobj) for values in (predicted_values(), reference_values()))
    np.testing.assert_array_equal(difference == MISSED, (true > 0) & (predicted == 0))
    np.testing.assert_array_equal(difference == EXTRA, (true == 0) & (predicted > 0))
    np.testing.assert_array_equal(difference == CONFUSED, (true > 0) & (predicted > 0) & (true != predicted))
    for axis, index in enumerate(content["focus"]):
        wrong = (difference > 0).sum(axis=tuple({0, 1, 2} - {axis}))
        assert wrong[index] == wrong.max()


def test_a_large_scan_without_labels_stays_whole_and_is_not_called_cropped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MAX_BYTES", 2 * np.prod(SHAPE) - 1)
    monkeypatch.setattr(volumes, "MARGIN", 2.0)
    save(dataset / "predictions" / "good.nii.gz", np.zeros(SHAPE, np.uint8))
    unlabelled = entry_of(dataset, "good", label=False)
    line = write_case(tmp_path, 0, unlabelled)
    assert not line["exact"] and line["shape"] == line["whole_shape"] == [24, 20, 12]
    told = write_viewer(tmp_path / "one", "title", [unlabelled]).describe()
    assert ", 1 of them stored as 8 bit; open" in told
    told = write_viewer(tmp_path / "two", "title", [unlabelled, entry_of(dataset)]).describe()
    assert ", 2 of them stored as 8 bit and 1 cropped to the labels; open" in told
    assert "8 bit" not in write_viewer(tmp_path / "two", "title", [unlabelled], whole=True).describe()


def test_places_in_the_file_follow_from_those_on_the_page(
    dataset: Path, tmp_path: Path, read_script: Any, decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MAX_BYTES", 100)  # the scan is large, and cropped
    monkeypatch.setattr(volumes, "MARGIN", 2.0)
    write_case(tmp_path, 0, entry_of(dataset))
    content = read_script(tmp_path / "0.js")
    shown, file = np.asarray(decode(content["reference"]).dataobj), reference_values()
    assert shown.shape != as_ras(file).shape
    for voxel in np.ndindex(*shown.shape):
        place = tuple(axis["start"] + axis["sign"] * voxel[axis["axis"]] for axis in content["file"])
        assert shown[voxel] == file[place]


def test_a_large_scan_is_cropped_and_rounded(
    dataset: Path, tmp_path: Path, read_script: Any, decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MAX_BYTES", 2 * np.prod(SHAPE) - 1)
    monkeypatch.setattr(volumes, "MARGIN", 2.0)
    line = write_case(tmp_path, 0, entry_of(dataset))
    assert not line["exact"] and (line["shape"], line["whole_shape"]) == ([23, 20, 10], [24, 20, 12])
    content = read_script(tmp_path / "0.js")
    scan, whole = decode(content["channels"][0]["data"]), as_ras(scan_values(1))
    # RAS: x from file axis 1 (1 mm, labelled 3..21), y from axis 0 (1.5 mm, 2..17), z from axis 2 (2 mm, 2..9).
    # The margins are 2, 2 and 1 voxels; x and z run against their file axes.
    assert scan.shape == (23, 20, 10)
    corner = np.linalg.inv(whole.affine) @ scan.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner[:3], [0, 0, 1], atol=1e-4)
    part = np.asarray(whole.dataobj)[0:23, 0:20, 1:11]
    low, high = np.percentile(part, (0.5, 99.5))
    assert scan.get_data_dtype() == np.uint8
    assert np.abs(np.asarray(scan.dataobj) - np.clip(part, low, high)).max() <= (high - low) / 255 / 2 + 1e-3
    kept = write_case(tmp_path, 1, entry_of(dataset), whole=True)
    again = decode(read_script(tmp_path / "1.js")["channels"][0]["data"])
    assert kept["exact"] and kept["shape"] == kept["whole_shape"] == [24, 20, 12]
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(whole.dataobj))


def test_values_are_stored_in_the_smallest_type_that_holds_them() -> None:
    rows = [([0, 255], np.uint8), ([-1, 255], np.int16), ([0, 32767], np.int16), ([0, 32768], np.float32)]
    for values, kind in [*rows, ([0.5, 1], np.float32)]:
        array = np.array(values, np.float32).reshape(2, 1, 1)
        scan = volumes.exact_scan(array)
        assert scan.array.dtype == kind
        np.testing.assert_array_equal(scan.array * scan.slope + scan.intercept, array)


def test_probabilities_keep_their_place(dataset: Path, tmp_path: Path, read_script: Any, decode: Any) -> None:
    rng = np.random.default_rng(3)
    geometry = Geometry(SHAPE, awkward_affine(), 2)
    frame = rng.random((4, *geometry.frame_shape)).astype(np.float32)
    with spool_probabilities(tmp_path) as spool:
        for plane in range(frame.shape[1]):
            spool.add(frame[:, plane])
        spool.write(tmp_path / "poor.npz", geometry)
    entry = entry_of(dataset)
    pane = Pane("network", entry.panes[0].prediction, tmp_path / "poor.npz")
    line = write_case(tmp_path, 0, Entry(entry.case, (pane,), entry.meaning))
    channels = read_script(tmp_path / "0-0.js")
    assert [channel["name"] for channel in channels] == ["liver", MARKUP, "spleen"]  # without background
    assert read_script(tmp_path / "0.js")["probabilities"] == ["liver", MARKUP, "spleen"]
    stored = np.load(tmp_path / "poor.npz")["probabilities"]
    for channel, native in zip(channels, stored[1:], strict=True):
        expected = as_ras(native.astype(np.float32))
        image = decode(channel["data"])
        np.testing.assert_allclose(np.asarray(image.dataobj), np.asarray(expected.dataobj), atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5)
    assert line["panes"][0]["probabilities"]
    unnamed = Meaning(LabelScheme({0: "background", 1: "1", 3: "3"}))  # of files in which no voxel is 2
    write_case(tmp_path, 0, Entry(entry.case, (pane,), unnamed))
    again = read_script(tmp_path / "0-0.js")
    assert [channel["name"] for channel in again] == read_script(tmp_path / "0.js")["probabilities"] == ["1", "2", "3"]
    assert [channel["data"] for channel in again] == [channel["data"] for channel in channels]
    np.savez(tmp_path / "other.npz", probabilities=np.zeros((4, 12, 24, 20), np.float16))  # nnU-Net's order of axes
    pane = Pane("network", entry.panes[0].prediction, tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"other.npz: holds float16 of shape \(4, 12, 24, 20\).*20, 24, 12"):
        write_case(tmp_path, 1, Entry(entry.case, (pane,), entry.meaning))


def test_names_colours_and_scores_of_the_list(dataset: Path, tmp_path: Path, read_script: Any) -> None:
    regions = LabelScheme(SCHEME.names, 4, {MARKUP: (1, 2), "spleen": (3,)}, (1, 3))
    entries = [entry_of(dataset, "good", label=False), entry_of(dataset, scheme=regions)]
    write_viewer(tmp_path / "viewer", MARKUP, entries)
    content = read_script(tmp_path / "viewer" / "list.js")
    assert content["title"] == MARKUP
    plain, special = content["meanings"]
    assert [label["name"] for label in plain["labels"]] == ["liver", MARKUP, "spleen"]
    assert [label["colour"] for label in plain["labels"]] == list(COLOURS[:3])
    assert [(label["value"], label["ignored"]) for label in special["labels"]] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert special["labels"][3]["name"] == "ignore" and special["labels"][3]["colour"] not in COLOURS
    assert (plain["learned"], special["learned"]) == (False, True)
    assert special["regions"] == [{"name": MARKUP, "labels": [1, 2]}, {"name": "spleen", "labels": [3]}]
    unscored, scored = content["cases"]
    assert unscored["panes"][0]["mean"] is None and not unscored["reference"]
    assert list(scored["panes"][0]["dice"]) == ["1+2", "3"]
    expected = [2 * (594 - 96) / (594 + 594 - 96 + 84 + 72), 2 * (264 - 72) / (264 + 264 - 72)]
    assert list(scored["panes"][0]["dice"].values()) == pytest.approx(expected)
    assert scored["panes"][0]["mean"] == pytest.approx(np.mean(expected))


def test_texts_from_outside_are_never_markup(dataset: Path, tmp_path: Path) -> None:
    write_viewer(tmp_path / "viewer", MARKUP + "\u2028</script>", [entry_of(dataset)])
    for path in (tmp_path / "viewer").rglob("*.js"):
        if path.name == "list.js" or path.parent.name == "cases":
            assert path.read_bytes().isascii()
    # The page itself is the same for every viewer, and makes no markup of what it is given.
    assert (tmp_path / "viewer" / "index.html").read_bytes() == (PAGE / "index.html").read_bytes()
    scripts = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js") if path.name != "niivue.js")
    assert not re.search(r"insertAdjacentHTML|outerHTML|document\.write|\beval\b|new Function", scripts)
    (inner,) = re.findall(r"innerHTML = `([^`]*)`", scripts)
    assert "${" not in inner


def test_the_page_asks_for_nothing_outside_of_its_folder() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "connect-src data: blob:" in page
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all((PAGE / name).is_file() for name in loaded if name not in ("list.js", "https://niivue.com"))
    assert "list.js" in loaded


def test_niivue_is_the_file_that_its_note_names() -> None:
    note = (PAGE / "NIIVUE_LICENSE.txt").read_text(encoding="utf-8")
    digest = hashlib.sha256((PAGE / "niivue.js").read_bytes()).hexdigest()
    assert f"SHA-256: {digest}\n" in note
    assert "niivue 0.69.0" in note and "BSD 2-Clause License" in note


def test_all_grids_are_compared_before_anything_is_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(dataset / "predictions" / "good.nii.gz", np.zeros((3, 3, 3), np.uint8))
    moved = awkward_affine()
    moved[0, 3] += 5
    save(dataset / "labelsTs" / "poor.nii.gz", reference_values(), moved)
    with pytest.raises(InputError) as raised:
        write_viewer(tmp_path / "viewer", "title", [entry_of(dataset, "good"), entry_of(dataset, "poor")])
    text = str(raised.value)
    assert re.search(r"good.nii.gz: not on the grid of .*shapes \(20, 24, 12\) and \(3, 3, 3\)", text)
    assert re.search(r"labelsTs/poor.nii.gz: not on the grid of .*the affines differ by up to 5 mm", text)
    assert "Writing" not in capsys.readouterr().out and not (tmp_path / "viewer").exists()


def test_the_same_voxels_give_the_same_files(dataset: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_viewer(tmp_path / name, "title", [entry_of(dataset)])
    files: Callable[[str], dict[str, bytes]] = lambda name: {  # noqa: E731
        str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")
    }
    assert files("a") == files("b")
    assert min(files("a")) == "NIIVUE_LICENSE.txt"
