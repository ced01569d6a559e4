"""Differences and Dice of two label maps agree with the evaluation, also with regions and ignored voxels."""

from __future__ import annotations

import numpy as np
import pytest

from e2enet.data.formats.scheme import LabelScheme
from e2enet.evaluation.scores import drop_ignored, score_case
from e2enet.view.agreement import CONFUSED, EXTRA, MISSED, compare_labels

NAMES = {0: "background", 1: "liver", 2: "spleen", 3: "kidney"}
TUMOUR = LabelScheme(
    {0: "background", 1: "oedema", 2: "necrosis", 3: "enhancing"},
    4,
    {"whole": (1, 2, 3), "core": (2, 3)},
    (1, 2),
)


def test_each_difference_by_hand() -> None:
    reference = np.array([[0, 1, 1, 2, 0]])
    prediction = np.array([[0, 1, 0, 1, 2]])
    agreement = compare_labels(prediction, reference, LabelScheme(NAMES))
    assert agreement.difference.tolist() == [[0, 0, MISSED, CONFUSED, EXTRA]]
    assert agreement.difference.dtype == np.uint8
    # Class 1: one of two and two voxels agree; class 2 agrees nowhere; class 3 is nowhere.
    assert agreement.dice == {"1": 2 * 1 / (2 + 2), "2": 0.0, "3": None}
    assert agreement.mean == pytest.approx(0.25)


def test_dice_is_that_of_the_evaluation() -> None:
    rng = np.random.default_rng(1)
    prediction, reference = (rng.integers(0, 4, (5, 6, 7)).astype(np.uint8) for _ in range(2))
    reference[reference == 3] = 0  # an invented class
    scores = score_case("case", prediction, reference, (1.0, 1.0, 1.0), [1, 2, 3])
    agreement = compare_labels(prediction, reference, LabelScheme(NAMES), {"abdomen": (1, 2)})
    assert agreement.dice == pytest.approx(
        {str(score.label): score.dice for score in scores} | {"1+2": _union_dice(prediction, reference, (1, 2))}
    )
    assert agreement.mean == pytest.approx(np.mean([score.dice for score in scores]))
    assert agreement.dice["3"] == 0


def test_ignored_voxels_count_nowhere() -> None:
    rng = np.random.default_rng(2)
    prediction = rng.integers(0, 4, (4, 5, 6)).astype(np.uint8)
    reference = rng.integers(0, 5, (4, 5, 6)).astype(np.uint8)
    agreement = compare_labels(prediction, reference, TUMOUR)
    kept = drop_ignored(prediction, reference, 4)
    scores = score_case("case", *kept, (1.0, 1.0, 1.0), (), regions=TUMOUR.regions)
    assert list(agreement.dice) == ["1+2+3", "2+3"]
    assert list(agreement.dice.values()) == pytest.approx([score.dice for score in scores])
    assert agreement.mean == pytest.approx(np.mean([score.dice for score in scores]))
    assert not agreement.difference[reference == 4].any()
    assert agreement.difference[reference != 4].any()


def test_labels_of_the_same_regions_are_no_difference() -> None:
    """Necrosis and enhancing tumour are both whole and core: a network of these regions cannot tell them apart."""
    agreement = compare_labels(np.array([[2, 1, 3]]), np.array([[3, 2, 0]]), TUMOUR)
    assert agreement.difference.tolist() == [[0, CONFUSED, EXTRA]]


def test_two_empty_maps_agree_without_a_score() -> None:
    empty = np.zeros((2, 3), np.uint8)
    agreement = compare_labels(empty, empty, LabelScheme(NAMES))
    assert agreement.mean is None and set(agreement.dice.values()) == {None} and not agreement.difference.any()


def _union_dice(prediction: np.ndarray, reference: np.ndarray, labels: tuple[int, ...]) -> float:
    first, second = np.isin(prediction, labels), np.isin(reference, labels)
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())
