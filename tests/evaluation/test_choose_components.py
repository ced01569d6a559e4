"""Choosing the classes that keep only their largest component: the rule, its scores, and that no mean Dice falls."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.evaluation.choose_components import choice_content, choose_classes, dice_of_classes, write_postprocessed
from e2enet.evaluation.scores import score_case, summarise
from e2enet.inference.largest_component import keep_largest

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
NAMES = {0: "background", 1: "liver", 2: "spleen", 3: "gut"}


def save(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def two_cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (prediction, reference) pairs.

    Class 1 has an extra speck in case a. Class 2 has two true parts in case b. Class 3 is absent.
    """
    reference_a, reference_b = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    reference_a[0:2, 0:2, 0:2] = 1
    reference_b[0:2, 0:2, 0:2] = 1
    reference_b[4, 4, 0:3] = reference_b[4, 4, 5:7] = 2
    prediction_a, prediction_b = reference_a.copy(), reference_b.copy()
    prediction_a[6, 6, 6:8] = 1
    return [(prediction_a, reference_a), (prediction_b, reference_b)]


def written(folder: Path) -> dict[str, tuple[Path, Path]]:
    return {
        case: (save(folder / f"{case}_prediction.nii.gz", images[0]), save(folder / f"{case}.nii.gz", images[1]))
        for case, images in zip("ab", two_cases(), strict=True)
    }


def test_a_class_is_chosen_where_its_mean_dice_rises(tmp_path: Path) -> None:
    first, second, third = choose_classes(written(tmp_path), NAMES)
    # Class 1: case a scores 2 * 8 / (10 + 8) with the speck and 1 without; case b always 1.
    assert (first.dice_before, first.dice_after) == (pytest.approx((16 / 18 + 1) / 2), 1.0)
    assert (first.n, first.n_changed, first.keep_largest) == (2, 1, True)
    # Class 2 is in case b alone: 1 as predicted, 2 * 3 / (3 + 5) with only its larger part.
    assert (second.dice_before, second.dice_after) == (1.0, pytest.approx(6 / 8))
    assert (second.n, second.n_changed, second.keep_largest) == (1, 1, False)
    assert math.isnan(third.dice_before) and (third.n, third.keep_largest) == (0, False)
    content = choice_content([first, second, third])
    assert content["keep_largest"] == [1]
    assert content["mean_dice"] == pytest.approx({"before": ((16 / 18 + 1) / 2 + 1) / 2, "after": 1.0})
    assert content["classes"]["3"]["dice_before"] is None
    assert "26-connected" in content["rule"]


def test_references_are_renumbered(tmp_path: Path) -> None:
    pairs = written(tmp_path)
    for _, reference in pairs.values():
        labels = np.asarray(nib.load(reference).dataobj)
        save(reference, np.where(labels == 1, 4, labels).astype(np.uint8))
    assert choose_classes(pairs, NAMES, label_map={4: 1})[0].dice_after == 1.0
    assert choose_classes(pairs, NAMES)[0].dice_after == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_no_class_and_no_mean_is_worse_on_the_cases_that_decide(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = {}
    for case in "abc":
        prediction = (random.random((7, 8, 9)) < 0.1) * random.integers(1, 4, (7, 8, 9))
        reference = np.where(random.random((7, 8, 9)) < 0.4, prediction, 0)
        pairs[case] = (
            save(tmp_path / f"{case}_p.nii.gz", prediction.astype(np.uint8)),
            save(tmp_path / f"{case}.nii.gz", reference.astype(np.uint8)),
        )
    choices = choose_classes(pairs, NAMES)
    content = choice_content(choices)
    assert content["mean_dice"]["after"] >= content["mean_dice"]["before"]
    # Scoring the postprocessed images gives the mean that the choice states.
    scores = []
    for case, (prediction_path, reference_path) in pairs.items():
        target = tmp_path / "out" / f"{case}.nii.gz"
        write_postprocessed(prediction_path, target, content["keep_largest"])
        images = [np.asarray(nib.load(path).dataobj) for path in (target, reference_path)]
        scores += score_case(case, *images, (1.0, 2.0, 3.0), NAMES)
    means = summarise(scores, NAMES)
    assert means["mean"]["dice"] == pytest.approx(content["mean_dice"]["after"])
    for choice in choices:
        after = means["classes"][str(choice.label)]["dice"]
        assert after == pytest.approx(choice.dice_after if choice.keep_largest else choice.dice_before)
        assert after >= choice.dice_before - 1e-12


def test_dice_by_counting_is_that_of_the_scores() -> None:
    random = np.random.default_rng(0)
    prediction, reference = (random.integers(0, 3, (5, 6, 7)).astype(np.uint8) for _ in range(2))
    prediction[prediction == 2] = 0  # missed
    expected = [score.dice for score in score_case("a", prediction, reference, (1, 1, 1), NAMES)]
    np.testing.assert_allclose(dice_of_classes(prediction, reference, [1, 2, 3]), expected)
    assert expected[1] == 0 and math.isnan(expected[2])


def test_a_written_image_keeps_its_grid_and_type(tmp_path: Path) -> None:
    prediction = two_cases()[0][0].astype(np.int16)
    source = save(tmp_path / "a.nii.gz", prediction)
    others = nib.load(source)
    others.header["descrip"] = b"Doe^Jane"
    nib.save(others, tmp_path / "b.nii.gz")  # another program's file, which kept parts of the scan's header
    write_postprocessed(tmp_path / "b.nii.gz", tmp_path / "out" / "a.nii.gz", [1])
    image = nib.load(tmp_path / "out" / "a.nii.gz")
    assert b"Doe" not in image.header.binaryblock
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), keep_largest(prediction, [1]))
