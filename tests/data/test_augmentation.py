"""Augmentation recipes: how often each step is drawn, and that a draw is applied as drawn."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from e2enet.common.errors import InputError
from e2enet.data.augmentation import intensity
from e2enet.data.augmentation.intensity_steps import LowResolution, NoiseDraw
from e2enet.data.augmentation.recipe import Augmentation, Draw, build_augmentation
from e2enet.data.augmentation.spatial import RotationScaling

DOCS = Path(__file__).parents[2] / "docs"
PATCH = (6, 8, 10)
CHANNEL = np.random.default_rng(0).normal(size=PATCH).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 4, PATCH).astype(np.uint8)
NOTHING = Draw({})


def apply_one(augmentation: Augmentation, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """CHANNEL and LABEL after one draw."""
    image, label = augmentation.apply(
        [torch.from_numpy(CHANNEL.copy())[None]], [torch.from_numpy(LABEL.copy())], [draw]
    )
    return image[0, 0].numpy(), label[0].numpy()


def draw_many(augmentation: Augmentation, count: int, channels: int = 1) -> list[Draw]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [augmentation.draw(channels) for _ in range(count)]


def mirrored(draw: Draw) -> tuple[int, ...]:
    return draw.drawn.get("mirror", ())


def turned_by(draw: Draw) -> np.ndarray | None:
    return np.array(draw.drawn["spatial"]) if "spatial" in draw.drawn else None


def test_none_changes_nothing() -> None:
    augmentation = build_augmentation(PATCH, (0, 1, 2), "none")
    assert all(draw == NOTHING for draw in draw_many(augmentation, 20))
    image, label = apply_one(augmentation, NOTHING)
    np.testing.assert_array_equal(image, CHANNEL)
    np.testing.assert_array_equal(label, LABEL)


def test_mirror_flips_image_and_label_on_the_given_axes_only() -> None:
    draws = draw_many(build_augmentation(PATCH, (1, 2), "mirror"), 40)
    assert {mirrored(draw) for draw in draws} == {(), (1,), (2,), (1, 2)}
    for draw in draws:
        image, label = apply_one(build_augmentation(PATCH, (1, 2), "mirror"), draw)
        np.testing.assert_array_equal(image, np.flip(CHANNEL, mirrored(draw)))
        np.testing.assert_array_equal(label, np.flip(LABEL, mirrored(draw)))


def test_steps_follow_one_another_in_the_recipes_order() -> None:
    augmentation = build_augmentation(PATCH, ())
    draw = Draw({"gamma": [0.8], "contrast": [1.2], "blur": [0.6]})
    rows = torch.from_numpy(CHANNEL.copy())[None]
    for function, strength in ((intensity.blur, 0.6), (intensity.scale_contrast, 1.2), (intensity.change_gamma, 0.8)):
        function(rows, [strength])
    np.testing.assert_allclose(apply_one(augmentation, draw)[0], rows[0].numpy(), atol=1e-6)


def test_only_drawn_channels_of_drawn_patches_change() -> None:
    images = [torch.ones(3, 2, 2, 2), torch.ones(3, 2, 2, 2)]
    labels = [torch.zeros(2, 2, 2, dtype=torch.uint8)] * 2
    draws = [
        Draw({"brightness": [2.0, None, 3.0]}),
        Draw({"brightness": [None, 5.0, None]}),
    ]
    image, _ = build_augmentation((2, 2, 2), ()).apply(images, labels, draws)
    assert image[:, :, 0, 0, 0].tolist() == [[2, 1, 3], [1, 5, 1]]


def test_noise_follows_from_its_seed_and_has_its_deviation() -> None:
    augmentation = build_augmentation((40, 40, 40), ())
    image, label = torch.zeros(2, 40, 40, 40), torch.zeros(40, 40, 40)
    draws = [Draw({"noise": NoiseDraw(0.05, seed)}) for seed in (7, 7, 8)]
    first, again, other = augmentation.apply([image] * 3, [label] * 3, draws)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.05, rel=0.02) and float(first.mean()) == pytest.approx(0, abs=1e-3)
    assert not torch.equal(first[0], first[1])  # each channel has noise of its own


def test_each_change_is_drawn_as_often_and_as_strongly_as_nnunet_draws_it() -> None:
    draws = draw_many(build_augmentation(PATCH, (0, 2)), 4000, channels=2)

    def share(count: int, of: int = len(draws)) -> float:
        return count / of

    assert share(sum("spatial" in draw.drawn for draw in draws)) == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    noises = [draw.drawn["noise"].deviation for draw in draws if "noise" in draw.drawn]
    assert share(len(noises)) == pytest.approx(0.1, abs=0.02)
    assert 0 < min(noises) < 0.005 and 0.095 < max(noises) <= 0.1
    # Probability per patch, per channel; range; mean strength (the halves below and above 1 are equally likely).
    expected = {
        "blur": (0.2, 0.5, 0.5, 1.0, 0.75),
        "brightness": (0.15, 1.0, 0.75, 1.25, 1.0),
        "contrast": (0.15, 1.0, 0.75, 1.25, 1.0),
        "low_resolution": (0.25, 0.5, 0.5, 1.0, 0.75),
        "gamma_inverted": (0.1, 1.0, 0.7, 1.5, 1.05),
        "gamma": (0.3, 1.0, 0.7, 1.5, 1.05),
    }
    assert list(build_augmentation(PATCH, ()).steps) == ["spatial", "noise", *expected, "mirror"]
    for name, (p, channel_p, low, high, mean) in expected.items():
        drawn = [draw.drawn[name] for draw in draws if name in draw.drawn]
        values = [value for strengths in drawn for value in strengths if value is not None]
        assert share(len(drawn)) == pytest.approx(p, abs=0.03), name
        assert share(len(values), 2 * len(drawn)) == pytest.approx(channel_p, abs=0.04), name
        assert low <= min(values) < low + 0.05 and high - 0.05 < max(values) <= high, name
        assert np.mean(values) == pytest.approx(mean, abs=0.03), name
    for axis in (0, 2):
        assert share(sum(axis in mirrored(draw) for draw in draws)) == pytest.approx(0.5, abs=0.03)
    assert not any(1 in mirrored(draw) for draw in draws)


def test_rotation_angles_and_scales_fill_their_ranges() -> None:
    matrices = [
        matrix for draw in draw_many(build_augmentation(PATCH, ()), 4000) if (matrix := turned_by(draw)) is not None
    ]
    scales = np.array([np.cbrt(np.linalg.det(matrix)) for matrix in matrices])
    scaled = scales[np.abs(scales - 1) > 1e-6]
    assert len(scaled) / 4000 == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= scaled.min() < 0.72 and 1.38 < scaled.max() <= 1.4
    assert np.mean(scaled > 1) == pytest.approx(0.5, abs=0.06)
    turned = [matrix / scale for matrix, scale in zip(matrices, scales, strict=True)]
    turned = [matrix for matrix in turned if not np.allclose(matrix, np.eye(3))]
    assert len(turned) / 4000 == pytest.approx(0.2, abs=0.03)
    # One entry of R = R_w R_h R_d is the sine of the angle about H, which is uniform over +-30 degrees.
    angles = np.rad2deg([np.arcsin(matrix[2, 0]) for matrix in turned])
    assert stats.kstest(angles, stats.uniform(-30, 60).cdf).pvalue > 0.01


def test_patches_augmented_in_plane_turn_by_up_to_half_a_turn() -> None:
    draws = draw_many(build_augmentation((8, 25, 25), ()), 4000)
    matrices = [matrix for draw in draws if (matrix := turned_by(draw)) is not None]
    assert all(np.allclose(matrix[0], [1, 0, 0]) and np.allclose(matrix[:, 0], [1, 0, 0]) for matrix in matrices)
    angles = np.array([np.rad2deg(np.arctan2(matrix[2, 1], matrix[1, 1])) for matrix in matrices])
    turned = angles[np.abs(angles) > 1e-6]
    assert len(turned) / 4000 == pytest.approx(0.2, abs=0.03)
    assert stats.kstest(turned, stats.uniform(-180, 360).cdf).pvalue > 0.01


def test_whole_recipe_gives_finite_patches_with_old_labels() -> None:
    augmentation = build_augmentation(PATCH, (0, 1, 2))
    for draw in draw_many(augmentation, 30):
        image, label = apply_one(augmentation, Draw({k: v for k, v in draw.drawn.items() if k != "spatial"}))
        assert image.dtype == np.float32 and image.shape == PATCH and np.isfinite(image).all()
        np.testing.assert_array_equal(np.bincount(label.ravel()), np.bincount(LABEL.ravel()))


def test_half_precision_of_the_training_step_does_not_reach_the_images() -> None:
    augmentation = build_augmentation(PATCH, (0,))
    draw = Draw({"spatial": np.eye(3).tolist(), "blur": [0.8], "gamma": [1.2]})
    expected = apply_one(augmentation, draw)
    with torch.autocast("cpu", torch.bfloat16):
        image, label = apply_one(augmentation, draw)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(label, expected[1])


def test_very_anisotropic_patches_are_augmented_in_plane() -> None:
    flat, deep = build_augmentation((8, 25, 25), ()), build_augmentation((8, 24, 24), ())
    for recipe, in_plane, degrees in ((flat, True, 180), (deep, False, 30)):
        spatial, low_resolution = recipe.steps["spatial"], recipe.steps["low_resolution"]
        assert isinstance(spatial, RotationScaling) and isinstance(low_resolution, LowResolution)
        assert (spatial.in_plane, spatial.degrees, low_resolution.in_plane) == (in_plane, degrees, in_plane)
    column = torch.rand(1, 8, 1, 1).expand(1, 8, 25, 25).clone()
    before = column.clone()
    flat.steps["low_resolution"].change(column, [0.5])  # type: ignore[attr-defined]
    torch.testing.assert_close(column, before)  # the resolution in depth is kept


def test_unknown_recipe_or_axis_is_an_input_error() -> None:
    with pytest.raises(InputError, match="mirror, nnunet, none"):
        build_augmentation(PATCH, (), "heavy")
    with pytest.raises(InputError, match="mirror_axes"):
        build_augmentation(PATCH, (3,))


def test_pictures_of_the_documentation_are_drawn_by_their_script(tmp_path: Path) -> None:
    document = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    for path in runpy.run_path(str(DOCS / "figures" / "draw_augmentation.py"))["main"](tmp_path):
        assert path.stat().st_size > 50_000
        assert (DOCS / "figures" / path.name).is_file() and f"figures/{path.name}" in document
