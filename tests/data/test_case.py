"""A case is read as training needs it, or refused with all of its problems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.case import channel_problem, count_labels, label_problem, read_case
from e2enet.data.formats.layout import read_msd
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_label, read_volume


def test_image_and_label_in_the_frame(toy: Any) -> None:
    dataset = read_msd(toy.folder)
    volumes = read_case(dataset, dataset.training[0], depth_axis=2)
    np.testing.assert_array_equal(volumes.image.array, read_volume([toy.image("a")], 2).array)
    np.testing.assert_array_equal(volumes.label, read_label(toy.label("a"), 2)[0])
    assert read_case(dataset, dataset.test[0], depth_axis=2).label is None


def test_labels_are_renumbered(toy: Any) -> None:
    dataset = replace(read_msd(toy.folder), label_map={1: 2, 2: 1})
    label = read_case(dataset, dataset.training[0], depth_axis=2).label
    assert label is not None and count_labels([label]) == {0: 354, 1: 24, 2: 54}


def test_everything_wrong_is_said_at_once(toy: Any) -> None:
    dataset = read_msd(toy.folder)
    toy.write_image("a", shape=(8, 9, 6, 2))
    moved = np.diag([-1.0, -1, 3, 1])
    toy.write_label("a", np.full((8, 9, 6), 5, np.uint8), affine=moved)
    with pytest.raises(InputError) as caught:
        read_case(dataset, dataset.training[0], depth_axis=2)
    text = str(caught.value)
    assert f"{toy.image('a')}: 2 channels, 1 expected" in text
    assert f"{toy.label('a')}: the affines differ by up to" in text
    assert f"{toy.label('a')}: holds label values 5 (432 voxels); those of the dataset expected: 0 to 2" in text
    toy.image("a").write_text("no image")
    with pytest.raises(InputError) as caught:
        read_case(dataset, dataset.training[0], depth_axis=2)
    assert "cannot be read as an image" in str(caught.value) and "label values 5" in str(caught.value)


def test_one_problem_is_one_line(toy: Any) -> None:
    dataset = read_msd(toy.folder)
    toy.write_label("a", np.full((8, 9, 6), 5, np.uint8))
    with pytest.raises(InputError, match=rf"^{toy.label('a')}: holds label values 5 \(432 voxels\)"):
        read_case(dataset, dataset.training[0], depth_axis=2)


def test_counts_are_those_of_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.data.formats.case.CHUNK_VOXELS", 100)
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 5, (9, 9, 9), dtype=np.uint8), rng.integers(0, 900, (5, 5, 5), dtype=np.int16)
    values, counts = np.unique(np.concatenate([small.ravel(), large.ravel()]), return_counts=True)
    assert count_labels([small, large]) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert count_labels([small], {4: 0, 3: 1}) == {
        0: int(np.isin(small, (0, 4)).sum()),
        1: int(np.isin(small, (1, 3)).sum()),
        2: int((small == 2).sum()),
    }
    assert count_labels([]) == {}


def test_problems_in_words() -> None:
    assert channel_problem(2, 2) is None and channel_problem(4, 1) == "4 channels, 1 expected"
    labels = LabelScheme({0: "background", 1: "a"})
    assert label_problem({0: 5, 1: 2}, labels) is None
    assert label_problem({1: 2, 2: 7}, LabelScheme(labels.names, ignore=2)) is None
    expected = "holds label values 2 (1 voxel), 9 (3 voxels); those of the dataset expected: 0 to 1"
    assert label_problem({0: 5, 9: 3, 2: 1}, labels) == expected
