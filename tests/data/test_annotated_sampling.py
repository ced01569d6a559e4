"""Patch positions with an ignore label or regions: annotated voxels only, and regions are drawn like classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e2enet.data.formats.layout import read_msd
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.loaders.patch_sampler import PatchSampler
from e2enet.data.planning.case_fingerprint import Measuring
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.foreground import ANNOTATED, sample_coordinates, write_coordinates
from e2enet.data.preparation.store import CaseStore
from tests.data.conftest import SHAPE, make_case

NAMES = {0: "background", 1: "a", 2: "b"}
SPARSE = LabelScheme(NAMES, ignore=3)
REGIONS = LabelScheme(NAMES, None, {"all": (1, 2), "b": (2,)}, (1, 2))


def test_annotated_voxels_are_all_but_the_ignored_ones() -> None:
    label = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    found = sample_coordinates(label, scheme=SPARSE)
    assert found.keys() == {1, 2, ANNOTATED}
    np.testing.assert_array_equal(found[ANNOTATED], np.argwhere(label != 3))
    np.testing.assert_array_equal(found[2], np.argwhere(label == 2))
    plain = sample_coordinates(label)
    for value in (1, 2):  # the coordinates of the classes do not change
        np.testing.assert_array_equal(found[value], plain[value])
    assert sample_coordinates(np.full((2, 2, 2), 3, np.uint8), scheme=SPARSE) == {}


def test_regions_are_listed_by_their_numbers() -> None:
    label = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    found = sample_coordinates(label, scheme=REGIONS)
    assert found.keys() == {1, 2}
    np.testing.assert_array_equal(found[1], np.argwhere(label > 0))
    np.testing.assert_array_equal(found[2], np.argwhere(label == 2))
    few = sample_coordinates(label, least=9, scheme=REGIONS)[1]
    assert len(few) == 9 and (label[tuple(few.T)] > 0).all()


@pytest.mark.parametrize(("annotated", "centres"), [(True, {(5, 6, 7), (5, 6, 8)}), (False, None)])
def test_patches_that_are_not_on_foreground_are_on_annotated_voxels(
    annotated: bool, centres: set[tuple[int, ...]] | None, tmp_path: Path
) -> None:
    case = make_case(tmp_path, shape=(12, 14, 16))
    label = np.full(case.shape, 3 if annotated else 0, np.uint8)
    label[5, 6, 7], label[5, 6, 8] = 0, 1
    write_coordinates(tmp_path / "a.foreground.npz", sample_coordinates(label, scheme=SPARSE if annotated else None))
    sampler, size = PatchSampler(), (4, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        anywhere = {sampler.draw_start(case, size, foreground=False) for _ in range(60)}
        on_class = {sampler.draw_start(case, size, foreground=True) for _ in range(20)}
    assert on_class == {(3, 4, 6)}  # the voxel of class 1 minus half a patch, never the background voxel
    if centres is None:
        assert len(anywhere) > 40
    else:
        assert anywhere == {tuple(place - 2 for place in centre) for centre in centres}


def test_foreground_intensities_leave_ignored_voxels_out(toy: Any, tmp_path: Path) -> None:
    toy.describe(labels={"0": "background", "1": "liver", "2": "spleen", "3": "ignore"})
    image, label = np.full(SHAPE, 5, np.int16), np.zeros(SHAPE, np.uint8)
    label[1:3], label[3:] = 1, 3
    image[1:3], image[3:] = 7, 900
    toy.write_image("a", image)
    toy.write_label("a", label)
    dataset = read_msd(toy.folder)
    measuring = Measuring(dataset, 2, 64, tmp_path)
    measuring.measure(dataset.training[0])
    kept = measuring.kept(dataset.training[0])
    assert kept is not None and set(kept[1].flatten()) == {7.0}


def test_prepared_cases_are_those_of_their_scheme(toy: Any, tmp_path: Path) -> None:
    dataset = read_msd(toy.folder)
    plan = Plan(2, (3.0, 1.0, 1.0), (4, 4, 4), ((1, 2, 2),), 2, ({"scheme": "none"},), (6, 8, 9))
    (case,) = prepare_cases(dataset, dataset.training[:1], plan, tmp_path)
    assert set(case.foreground) == {1, 2}
    sparse = replace(dataset, scheme=LabelScheme({0: "background", 1: "liver"}, ignore=2))
    assert CaseStore.of(tmp_path, sparse, plan).find(dataset.training[0]) is None
    (again,) = prepare_cases(sparse, dataset.training[:1], plan, tmp_path)
    assert set(again.foreground) == {1, ANNOTATED}
