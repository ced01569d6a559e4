"""Which cases and positions patches are drawn from: shares, weights, and that each sample's seed decides them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.common.overrides import renamed
from e2enet.configuration.check import check_command_line
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.command import build_datamodule, dataset_source
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.layouts.phantom import PhantomLayout
from e2enet.data.loaders.loading import collate_patches
from e2enet.data.loaders.patch_sampler import PatchSampler, Triple
from e2enet.data.loaders.sampling import PatchDataset
from e2enet.data.preparation.foreground import ANNOTATED, sample_coordinates, write_coordinates
from e2enet.data.preparation.store import PreparedCase
from tests.data import golden
from tests.data.conftest import make_case

PATCH = (4, 6, 8)
SCHEME = LabelScheme({0: "background", 1: "corner", 2: "block"}, ignore=3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_dataset(cases: Sequence[PreparedCase], sampler: PatchSampler | None, **options: Any) -> PatchDataset:
    augmentation = build_augmentation(PATCH, (), "none")
    return PatchDataset(cases, PATCH, batch_size=2, augmentation=augmentation, seed=0, sampler=sampler, **options)


def bound(sampler: PatchSampler, scheme: LabelScheme = SCHEME, cases: Sequence[str] = ("a", "b")) -> PatchSampler:
    sampler.bind(scheme, {*cases, "c"}, cases)
    return sampler


def classes_at_centres(case: PreparedCase, sampler: PatchSampler, count: int = 200) -> Counter[int]:
    label = case.open_label()
    starts = [sampler.draw_start(case, (1, 1, 1), foreground=True) for _ in range(count)]
    return Counter(int(label[start]) for start in starts)


def test_patches_of_nnu_nets_recipe_are_those_of_earlier_versions(tmp_path: Path) -> None:
    cases = golden.golden_cases(tmp_path)
    recipe = build_augmentation(golden.PATCH, golden.MIRRORED, masked_channels=golden.MASKED)
    given: dict[str, Any] = {"batch_size": golden.BATCH, "augmentation": recipe, "seed": golden.SEED}
    here, there = (PatchDataset(cases, golden.PATCH, **given, augment_here=place) for place in (True, False))
    keys = [(golden.EPOCH, index) for index in range(len(golden.RECORDED))]
    boxes = collate_patches([there[key] for key in keys])
    images, labels = recipe.apply(boxes["image"], boxes["label"], boxes["draw"], boxes["inside"])
    on_device = [golden.in_numbers(*sample) for sample in zip(boxes["case"], images, labels, strict=True)]
    samples: list[dict[str, Any]] = [here[key] for key in keys]
    in_worker = [golden.in_numbers(sample["case"], sample["image"], sample["label"]) for sample in samples]
    for place in (in_worker, on_device):
        for (case, image, label), (had, image_had, label_had) in zip(place, golden.RECORDED, strict=True):
            assert case == had
            # On another processor, rounding may change a voxel of a rotated label.
            assert image == pytest.approx(image_had, abs=2e-4) and label == pytest.approx(label_had, abs=0.02)


def test_foreground_patches_hold_each_class_at_the_centre_or_at_the_border(tmp_path: Path) -> None:
    case, sampler = make_case(tmp_path, shape=(16, 16, 16)), PatchSampler()
    starts = [sampler.draw_start(case, PATCH, foreground=True) for _ in range(40)]
    # Class 1 is one voxel in a corner, class 2 a block of eight: both are drawn, about equally often.
    on_corner = starts.count((0, 0, 0))
    assert 10 <= on_corner <= 30
    label = case.open_label()
    assert all(label[d + 2, h + 3, w + 4] == 2 for d, h, w in starts if (d, h, w) != (0, 0, 0))


def test_random_patches_reach_every_start_and_stay_inside(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(5, 7, 9))
    starts = {PatchSampler().draw_start(case, PATCH, foreground=False) for _ in range(200)}
    assert starts == {(d, h, w) for d in range(2) for h in range(2) for w in range(2)}


def test_a_case_without_foreground_gives_a_patch_anywhere(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(5, 7, 9))
    write_coordinates(tmp_path / "a.foreground.npz", {})
    starts = {PatchSampler().draw_start(case, PATCH, foreground=True) for _ in range(200)}
    assert len(starts) == 8


@pytest.mark.parametrize("weights", [{"corner": 3}, {1: 3.0, 2: 1}, {"1": 3, "block": 1}])
def test_classes_are_drawn_by_their_weights(weights: dict[Any, float], tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(16, 16, 16))
    drawn = classes_at_centres(case, bound(PatchSampler(class_weights=weights)), 400)
    assert drawn[1] == pytest.approx(300, abs=27) and drawn[1] + drawn[2] == 400  # three standard deviations


def test_a_class_of_weight_zero_is_never_the_centre(tmp_path: Path) -> None:
    case, sampler = make_case(tmp_path, shape=(16, 16, 16)), bound(PatchSampler(class_weights={"block": 0}))
    assert classes_at_centres(case, sampler) == {1: 200}
    only_block = {2: case.foreground[2]}
    write_coordinates(tmp_path / "a.foreground.npz", only_block)
    assert classes_at_centres(case, sampler)[0] > 150  # anywhere
    write_coordinates(tmp_path / "a.foreground.npz", {**only_block, ANNOTATED: np.array([[3, 3, 3]])})
    assert {sampler.draw_start(case, (1, 1, 1), foreground=True) for _ in range(9)} == {(3, 3, 3)}


def test_regions_are_weighted_by_their_names_and_numbers(tmp_path: Path) -> None:
    scheme = LabelScheme({0: "background", 1: "corner", 2: "block"}, None, {"whole": (1, 2), "core": (2,)}, (1, 2))
    case = make_case(tmp_path, shape=(16, 16, 16))
    write_coordinates(tmp_path / "a.foreground.npz", sample_coordinates(np.array(case.open_label()), scheme=scheme))
    drawn = classes_at_centres(case, bound(PatchSampler(class_weights={"core": 0, 1: 2}), scheme), 180)
    assert drawn[1] == pytest.approx(20, abs=13)  # one of the nine voxels of the whole
    with pytest.raises(InputError, match="block is no class that patches are drawn for"):
        bound(PatchSampler(class_weights={"block": 1}), scheme)


def test_cases_are_drawn_by_their_weights(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name) for name in "abc"]
    sampler = PatchSampler(case_weights={"b": 2, "c": 0})
    draws = np.random.default_rng(0).integers(0, 2**64, 900, dtype=np.uint64).tolist()
    drawn = Counter(cases[sampler.draw_case(cases, draw)].id for draw in draws)
    assert drawn["a"] == pytest.approx(300, abs=43) and drawn["a"] + drawn["b"] == 900  # three standard deviations
    assert min(Counter(PatchSampler().draw_case(cases, draw) for draw in draws).values()) > 257
    extremes = [sampler.draw_case(cases, draw) for draw in (0, 2**64 - 1)]
    assert extremes == [0, 1]  # rounding at the ends of the range selects no case of weight 0
    dataset = make_dataset(cases, sampler)
    assert {dataset[(0, index)]["case"] for index in range(20)} == {"a", "b"}


def test_weighted_samples_follow_from_their_key_alone(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name) for name in "ab"]
    options: dict[str, Any] = {"foreground_share": 0.5, "class_weights": {2: 3}, "case_weights": {"a": 3}}
    first = make_dataset(cases, bound(PatchSampler(**options)))
    samples = {index: first[(1, index)] for index in range(8)}
    again = make_dataset(cases, bound(PatchSampler(**options)))
    for index in reversed(samples):
        other: Any = again[(1, index)]
        assert other["case"] == samples[index]["case"] and torch.equal(other["image"], samples[index]["image"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"class_weights": {"blok": 1}}, r"class_weights: blok is no class .* did you mean block\?"),
        ({"class_weights": {"background": 1}}, "background is no class"),
        ({"class_weights": {3: 1}}, "3 is no class"),  # the ignore label
        ({"class_weights": {1: 0, "block": 0}}, "every class has weight 0"),
        ({"case_weights": {"case_a": 1}}, r"case_a is no case that patches are drawn for"),
        ({"case_weights": {"a": 0, "b": 0}}, "each of the 2 training cases has weight 0"),
        ({"case_weights": {"a": -1}}, "a has weight -1; a number >= 0 expected"),
        ({"class_weights": {"block": float("nan")}}, "block has weight nan"),
        ({"foreground_share": 1.5}, "foreground_share=1.5 must be from 0 to 1"),
    ],
)
def test_weights_that_cannot_be_used(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        bound(PatchSampler(**options))


def test_cases_of_other_folds_may_have_weights() -> None:
    bound(PatchSampler(case_weights={"c": 0}))


class Fixed(PatchSampler):
    """Draw the last case (or the one at `position`) and always the same start."""

    def __init__(self, start: Any, position: Any = None) -> None:
        super().__init__()
        self.start, self.position = start, position

    def draw_case(self, cases: Sequence[PreparedCase], draw: int) -> int:
        return len(cases) - 1 if self.position is None else self.position

    def draw_start(self, case: PreparedCase, size: Triple, foreground: bool) -> Triple:
        return self.start


def test_a_sampler_of_ones_own_decides(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name) for name in "ab"]
    sample: Any = make_dataset(cases, Fixed((1, 2, 3)))[(0, 0)]
    assert sample["case"] == "b"
    assert torch.equal(sample["image"][0], torch.from_numpy(np.load(cases[1].image))[0, 1:5, 2:8, 3:11])
    for sampler, problem in (
        (Fixed((1, 2)), r"Fixed.draw_start gave \(1, 2\) for a patch of \(4, 6, 8\) voxels in \(7, 12, 13\)"),
        (Fixed((0, 12, 0)), "of one that meets it expected"),
        (Fixed((1, 2, 3), 2), "Fixed.draw_case gave 2; a position from 0 to 1 expected"),
        (Fixed((1, 2, 3), 0.5), "Fixed.draw_case gave 0.5"),
    ):
        with pytest.raises(InputError, match=problem):
            make_dataset(cases, sampler)[(0, 0)]


def test_a_wrong_name_is_told_before_the_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: dict[str, Any] = {"root": tmp_path / "raw", "prepared_root": tmp_path / "prepared"}
    sampler = PatchSampler(class_weights={"tub": 2}, case_weights={"phantom_1": 2})
    layout = PhantomLayout(num_train=5, num_test=0, shape=(32, 32, 12))
    module = SegmentationDataModule(layout=layout, name="phantom", **roots, sampler=sampler)
    monkeypatch.setattr("e2enet.data.datamodule.check_at_first_use", lambda *_: pytest.fail("looked through"))
    with pytest.raises(InputError) as caught:
        module.prepare_data()
    for words in ("tub is no class", "did you mean tube?", "phantom_1 is no case", "did you mean phantom_001?"):
        assert words in str(caught.value)


def test_mistakes_of_the_section_are_told_at_once() -> None:
    given = ["data.sampler.foreground_share=2", "data.sampler.clas_weights={a:1}", "data.sampler.case_weights={a:-1}"]
    with pytest.raises(InputError) as caught:
        check_command_line([*given, "data.num_workers=-1"])
    for words in (
        "data.sampler.foreground_share=2: expected a number in [0, 1]",
        "data.sampler.clas_weights: unknown key; did you mean data.sampler.class_weights?",
        "data.sampler.case_weights={'a': -1}: expected null or a mapping",
        "data.num_workers=-1: expected",
    ):
        assert words in str(caught.value)
    with pytest.raises(InputError, match=r"_target_=torch.nn.ReLU: expected a class of .*patch_sampler.PatchSampler"):
        check_command_line(["data.sampler={_target_:torch.nn.ReLU}"])


def test_the_share_by_its_earlier_name() -> None:
    assert renamed("data.foreground_share=0.5") == "data.sampler.foreground_share=0.5"
    config = compose_config(["++data.foreground_share=0.5"])  # as a user's file may still have it
    with pytest.raises(InputError, match=r"data.foreground_share: is data.sampler.foreground_share now"):
        check_command_line(["++data={foreground_share:0.5}"])
    assert dataset_source(config).folder == build_datamodule(compose_config()).source.folder
