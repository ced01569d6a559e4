"""plan.json: readable, editable by hand, checked on load, and never silently dropped or replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning import plan_file
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.plan_file import plan_dataset


@pytest.fixture
def dataset(toy) -> RawDataset:
    return read_msd(toy.folder)


@pytest.fixture
def edit(dataset: RawDataset, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that plans into tmp_path and changes keys of plan.json. None removes a key."""

    def change(**values: Any) -> Path:
        path = tmp_path / "plan.json"
        if not path.exists():
            plan_dataset(dataset, tmp_path)
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    return change


def test_the_file_holds_the_plan_and_how_it_came_about(dataset: RawDataset, tmp_path: Path) -> None:
    plan = plan_dataset(dataset, tmp_path, memory_gb=4, spacing=(6, 1, 1))
    text = (tmp_path / "plan.json").read_text()
    content = json.loads(text)
    assert Plan.from_dict({key: content[key] for key in plan.to_dict()}) == plan
    assert content["derived"] == {"levels": len(plan.strides) + 1, "anisotropy": 6.0, "memory_gb": 4}
    assert content["made_from"]["options"]["spacing"] == [6, 1, 1]
    assert '"spacing": [6.0, 1.0, 1.0],\n' in text  # triples on one line
    before = (tmp_path / "plan.json").stat().st_mtime_ns
    assert plan_dataset(dataset, tmp_path, memory_gb=4, spacing=(6, 1, 1)) == plan
    assert (tmp_path / "plan.json").stat().st_mtime_ns == before


def test_an_edited_plan_is_used_and_said_to_be(
    dataset: RawDataset, tmp_path: Path, edit: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = edit(strides=[[1, 2, 2], [1, 2, 2]], patch_size=[6, 8, 8], batch_size=7)
    capsys.readouterr()
    plan = plan_dataset(dataset, tmp_path)
    assert plan.batch_size == 7 and plan.strides == ((1, 2, 2),) * 2 and plan.patch_size == (6, 8, 8)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "plan.json was edited, and is used" in said and "batch_size 2 -> 7" in said
    content = json.loads(path.read_text())
    assert content["derived"]["levels"] == 3  # follows the edit
    assert plan_dataset(dataset, tmp_path) == plan  # the edit remains


def test_a_patch_smaller_than_the_rules_is_said_to_be(
    dataset: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preset for quick looks fixes a small patch; nobody should take it for the data's."""
    plan_file._say_once.cache_clear()  # another test may have said it
    own = plan_dataset(dataset, tmp_path).patch_size
    assert "patches of" not in capsys.readouterr().out
    plan_dataset(dataset, tmp_path, patch_size=[4, 8, 8])
    said = capsys.readouterr().out
    expected = f"patches of 4 x 8 x 8 voxels, as plan.patch_size says; by the rules {' x '.join(map(str, own))} "
    assert said.startswith(f"{dataset.name}: {expected}")
    plan_dataset(dataset, tmp_path, patch_size=[4, 8, 8])
    assert "patches of" not in capsys.readouterr().out  # once is enough
    for kept in ({"patch_size": own}, {"kind": "paper"}, {"batch_size": 3}):
        plan_dataset(dataset, tmp_path, **kept)
        assert "by the rules" not in capsys.readouterr().out, kept


def test_an_unedited_plan_follows_the_options(dataset: RawDataset, tmp_path: Path) -> None:
    plan_dataset(dataset, tmp_path)
    assert plan_dataset(dataset, tmp_path, batch_size=5).batch_size == 5
    assert plan_dataset(dataset, tmp_path).batch_size == 2


def test_changed_options_do_not_drop_an_edit_silently(
    dataset: RawDataset, tmp_path: Path, edit: Callable[..., Path]
) -> None:
    path = edit(batch_size=7)
    text = path.read_text()
    with pytest.raises(InputError, match=r"plan\.json: was edited, but it was made for other options \(kind") as caught:
        plan_dataset(dataset, tmp_path, kind="paper")
    assert "batch_size 7 -> 2" in str(caught.value) and "delete the file" in str(caught.value)
    assert path.read_text() == text
    assert plan_dataset(dataset, tmp_path).batch_size == 7  # with the old options the edit applies again


def test_changed_data_keep_an_edit_only_while_the_rules_say_the_same(
    dataset: RawDataset, tmp_path: Path, edit: Callable[..., Path], toy
) -> None:
    path = edit(batch_size=7)
    os.utime(dataset.training[0].images[0], (1, 1))
    assert plan_dataset(dataset, tmp_path).batch_size == 7  # another date, the same voxels
    toy.write_image("a", np.full((8, 9, 6), 50, np.int16))
    with pytest.raises(InputError, match="was edited, but the data changed since"):
        plan_dataset(dataset, tmp_path)
    edit(made_from=None)
    plan = plan_dataset(dataset, tmp_path)
    assert plan.batch_size == 7 and "made_from" in json.loads(path.read_text())
    path.unlink()
    assert plan_dataset(dataset, tmp_path).batch_size == 2


def test_every_mistake_is_named_with_file_key_value_and_expectation(
    dataset: RawDataset, tmp_path: Path, edit: Callable[..., Path]
) -> None:
    edit(spacing=[1, 0, 1], patch_size=[8.5, 8, 8], batch_size="2", strides=[], median_shape=None, patchsize=[8, 8, 8])
    with pytest.raises(InputError) as caught:
        plan_dataset(dataset, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'plan.json'}: is no plan\n")
    for text in (
        "spacing is [1, 0, 1]: three numbers of mm > 0 (D, H, W), 0.0001 to 10000, expected",
        "patch_size is [8.5, 8, 8]: three whole numbers",
        "batch_size is '2': a whole number >= 1 expected",
        "strides is []: one triple",
        "median_shape: is missing",
        "patchsize: unknown key",
    ):
        assert text in message


CT = {"scheme": "ct", "lower": 0.0, "upper": 1.0, "mean": 0.5, "std": 0.1}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"patch_size": [6, 9, 8]}, "patch_size is [6, 9, 8]: a multiple of [1, 2, 2], the product of the strides"),
        ({"normalisation": [{"scheme": "minmax"}]}, "a scheme out of ct, zscore, none expected"),
        ({"normalisation": [{"scheme": "zscore"}]}, "normalisation[0] has the keys ['scheme']"),
        ({"normalisation": [{"scheme": "zscore", "nonzero": 1}]}, "normalisation[0].nonzero is 1: true or false"),
        ({"normalisation": [CT | {"lower": 2}]}, "normalisation[0].lower is 2: less than upper, 1.0, expected"),
        ({"normalisation": [CT, CT]}, "normalisation has 2 entries: one for each of the 1 channels expected"),
        ({"depth_axis": 0}, "depth_axis is 0: 2, the data's, expected"),
        ({"depth_axis": True}, "depth_axis is True: 0, 1 or 2 expected"),
        ({"made_from": 3}, "made_from is 3"),
    ],
)
def test_single_mistakes(
    dataset: RawDataset, tmp_path: Path, edit: Callable[..., Path], values: dict[str, Any], text: str
) -> None:
    edit(**({"patch_size": [6, 8, 8], "strides": [[1, 2, 2]]} | values))
    with pytest.raises(InputError) as caught:
        plan_dataset(dataset, tmp_path)
    assert text in str(caught.value) and "plan.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_a_file_that_is_no_object_is_named(dataset: RawDataset, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: (not valid JSON|holds list)"):
        plan_dataset(dataset, tmp_path)


def test_patches_of_mostly_padding_are_told(
    dataset: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cases have 6 x 8 x 9 voxels."""
    plan_file._say_once.cache_clear()
    for options, axes in (({"patch_size": (12, 16, 18)}, ""), ({"patch_size": (12, 18, 18)}, "H"), ({}, "D, H, W")):
        strides = ((1, 1, 1),) if options else None
        plan_dataset(dataset, tmp_path, kind="paper", strides=strides, **options)  # type: ignore[arg-type]
        said = capsys.readouterr().out
        assert (f"the median case has 6 x 8 x 9: along {axes} most of a patch is padding (plan=auto" in said) is bool(
            axes
        )
        assert ("padding" in said) is bool(axes)
    assert "Toy: patches of 128 x 128 x 128 voxels, the median case" in said
    plan_dataset(dataset, tmp_path)
    assert "padding" not in capsys.readouterr().out
