"""Every way in which a dataset of sound scans can be unusable: labels, pairs, lists, splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.layout import read_nnunet

SHAPE = (8, 9, 6)
MOVED = np.diag([-1.0, -1.0, 3.0, 1.0])
MOVED[0, 3] = 0.25
Spoil = Callable[[Any], Any]


def label(value: float, dtype: type = np.uint8, shape: tuple[int, ...] = SHAPE) -> Spoil:
    """Give one voxel of case b's label this value."""
    array = np.ones(shape, dtype)
    array.flat[5] = value
    return lambda bench: bench.write(bench.label("b"), array)


def listed(image: str, where: str = "labelsTr/a.nii.gz") -> Spoil:
    return lambda bench: bench.describe(training=[{"image": image, "label": where}])


def without_foreground(bench: Any) -> None:
    for case in "abcde":
        bench.write(bench.label(case), np.zeros(SHAPE, np.uint8))


def twice(bench: Any) -> None:
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    bench.describe(training=[entry, entry])


def text(content: str) -> Spoil:
    return lambda bench: (bench.raw / "dataset.json").write_text(content)


WRONG: dict[str, tuple[Spoil, str]] = {
    "label-out-of-the-table": (label(9), r"b\.nii\.gz: holds label values 9 \(1 voxel\); .*expected: 0 to 2"),
    "label-between-two": (label(0.5, np.float32), r"b\.nii\.gz: holds the value 0\.5, whole numbers .*expected"),
    "label-nan": (label(np.nan, np.float32), r"b\.nii\.gz: holds the value nan, whole numbers .*expected"),
    "label-negative": (label(-1, np.int16), r"b\.nii\.gz: values from -1 to 1, labels from 0 to 32767 expected"),
    "label-4d": (
        label(1, shape=(*SHAPE, 2)),
        r"b\.nii\.gz: a label image of shape \(8, 9, 6, 2\), three axes expected",
    ),
    "other-shape": (label(1, shape=(8, 9, 7)), r"shapes \(8, 9, 6\) and \(8, 9, 7\), the same grid expected"),
    "other-place": (
        lambda bench: bench.write(bench.label("b"), np.ones(SHAPE, np.uint8), MOVED),
        r"affines differ by up to 0\.25 mm, at most 0\.1 mm expected",
    ),
    "no-foreground-at-all": (without_foreground, "no training case has any labelled voxel, foreground expected"),
    "missing-label": (lambda bench: bench.label("b").unlink(), r"labelsTr/b\.nii\.gz: no such file"),
    "missing-image": (lambda bench: bench.image("b").unlink(), r"imagesTr/b\.nii\.gz: no such file"),
    "same-scan-twice": (
        lambda bench: bench.image("b").write_bytes(bench.image("a").read_bytes()),
        "the same image, voxel for voxel, as case a",
    ),
    "id-twice": (twice, "training lists case a more than once"),
    "outside-the-folder": (
        listed("../x.nii.gz"),
        r"'\.\./x\.nii\.gz' lies outside .*/raw/toy, a path within it expected",
    ),
    "drive": (listed("C:\\data\\x.nii.gz"), r"'C:/data/x\.nii\.gz' lies outside .*, a path within it expected"),
    "absolute-path": (listed("/etc/x.nii.gz"), "'/etc/x.nii.gz' lies outside .*, a path within it expected"),
    "label-outside": (listed("imagesTr/a.nii.gz", "../../l.nii.gz"), "lies outside .*, a path within it expected"),
    "name-too-long": (listed(f"imagesTr/{'a' * 300}.nii.gz"), "expected, of at most 200 bytes"),
    "name-of-control-characters": (listed("imagesTr/\x1b[2J.nii.gz"), r"image 'imagesTr/\\x1b\[2J.*without control"),
    "other-ending": (listed("imagesTr/a.png"), r"'imagesTr/a\.png': a name ending in \.nii\.gz, .*expected"),
    "no-list": (lambda bench: bench.describe(training={"a": 1}), "training is dict: a list of cases expected"),
    "no-case": (lambda bench: bench.describe(training=[]), "there is no training case"),
    "other-count": (lambda bench: bench.describe(numTraining=9), "numTraining is 9, but 5 training cases were found"),
    "no-object": (text("[]"), r"dataset\.json: holds list, an object expected"),
    "no-json": (text("{"), r"dataset\.json: not valid JSON"),
    "no-text": (lambda bench: (bench.raw / "dataset.json").write_bytes(b"\xff\xfe"), r"dataset\.json: not valid JSON"),
    "key-twice": (text('{"labels": {"1": "a", "1": "b"}}'), r"not valid JSON \(the key '1' twice in one object"),
    "endless-number": (text(f'{{"numTraining": {"9" * 5000}}}'), r"dataset\.json: not valid JSON"),
    "endless-nesting": (text("[" * 100_000), r"dataset\.json: not valid JSON"),
    "deep-nesting": (text("[" * 60 + "]" * 60), "nested more than 50 deep"),
    "half-a-character": (text('{"name": "\\ud800"}'), r"dataset\.json: not valid JSON .*surrogates"),
    "label-gap": (
        lambda bench: bench.describe(labels={"0": "b", "1": "x", "4": "y"}),
        r"from 0 expected, \[2, 3\] missing",
    ),
    "label-beyond-int16": (
        lambda bench: bench.describe(labels={"0": "b", "99999999999": "x"}),
        "one integer per label expected, from 0 to 32767",
    ),
    "label-of-no-digits": (
        lambda bench: bench.describe(labels={"0": "b", "\u00b2": "x"}),
        "one integer per label expected",
    ),
    "regions-without-order": (
        lambda bench: bench.describe(labels={"b": 0, "x": [1, 2]}),
        r"regions_class_order is None: one label for each region expected, in the order of \['x'\]",
    ),
    "no-labels": (lambda bench: bench.describe(labels={}), r"labels is \{\}: an object of names and values expected"),
    "channels-numbered-from-one": (
        lambda bench: bench.describe(modality={"1": "MRI"}),
        "consecutive numbers from 0 expected",
    ),
    "more-channels-than-the-scans": (
        lambda bench: bench.describe(modality={"0": "T1", "1": "T2"}),
        r"imagesTr/a\.nii\.gz: 1 channels, 2 expected",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_before_anything_is_prepared(bench: Any, name: str) -> None:
    spoil, message = WRONG[name]
    spoil(bench)
    found = bench.refusal()
    assert str(bench.raw) in found and re.search(message, found), found
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 5}, r"fold=5 must be 0 to 4 or 'all'"),
        ({"fold": -1}, r"fold=-1 must be 0 to 4 or 'all'"),
        ({"split": {"train": ["a"], "validation": ["z"]}}, "case z: no labelled case of the dataset"),
        ({"split": {"train": ["a", "b"], "validation": ["b"]}}, "case b is given 2 times"),
        ({"limit_cases": 7}, "limit_cases=7, but fold 0 .* has 4 training cases"),
    ],
)
def test_splits_that_cannot_be_made(bench: Any, options: dict[str, Any], message: str) -> None:
    assert re.search(message, bench.refusal(**options))
    assert [name for name in bench.leftovers() if name.endswith((".npy", ".npz"))] == []


def test_a_split_whose_training_cases_have_no_foreground(bench: Any) -> None:
    bench.write(bench.label("a"), np.zeros(SHAPE, np.uint8))
    found = bench.refusal(split={"train": ["a"], "validation": ["b"]})
    assert found.startswith(f"{bench.raw}: none of the 1 training cases of fold 0 has a labelled voxel, foreground in")
    assert not [name for name in bench.leftovers() if name.startswith(".tmp-")]
    bench.data(split={"train": ["b"], "validation": ["a"]})  # a validation case may have no foreground


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "x\ny", "n" * 201])
def test_ids_of_nnunet_that_are_no_file_names(bench: Any, name: str, tmp_path: Path) -> None:
    entry = {"images": ["imagesTr/a.nii.gz"], "label": "labelsTr/a.nii.gz"}
    path = bench.describe(dataset={name: entry})
    with pytest.raises(InputError, match="an id that can be a file's name expected") as caught:
        read_nnunet(bench.raw)
    assert f"{path}: dataset entry {name!r}" in str(caught.value)
