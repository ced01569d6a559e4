"""Plans agree with nnU-Net's: patch, strides and batch size recorded from its planner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.command import compose_data
from e2enet.data.planning.case_fingerprint import CaseFingerprint
from e2enet.data.planning.fingerprint import Fingerprint
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.data.planning.planner import make_plan, target_spacing
from e2enet.data.planning.topology import feature_map_size, pooling_strides, tiny_stride, total_stride

INTENSITIES = {"mean": 100.0, "std": 20.0, "percentile_00_5": -50.0, "percentile_99_5": 200.0}


def fingerprint(
    spacing: Sequence[float], shape: Sequence[int], *, cases: int = 1, classes: int = 2, relative: float = 1.0
) -> Fingerprint:
    depth, height, width = shape
    thick, tall, wide = map(float, spacing)
    row = CaseFingerprint("a", (thick, tall, wide), (depth, height, width), relative)
    return Fingerprint(2, classes, (row,) * cases, (INTENSITIES,))


# Recorded by running the ExperimentPlanner of nnU-Net 2.8.1 (3d_fullres) with dynamic-network-architectures
# 0.4.4: spacing, shape, classes with background, training cases, GB -> patch, strides without the first
# stage, batch size.
RECORDED: list[Any] = [
    pytest.param(
        (5, 0.75, 0.75), (95, 512, 512), 16, 200, 8,
        (40, 224, 192), ["122", "122", "222", "222", "222"], 2, id="thick-slice CT (AMOS-like)",
    ),
    pytest.param((1, 1, 1), (140, 170, 137), 4, 484, 8, (128, 128, 128), ["222"] * 5, 2, id="MRI (BraTS)"),
    pytest.param((1, 1, 1), (36, 50, 35), 3, 200, 8, (40, 56, 40), ["222"] * 3, 7, id="hippocampus"),
    pytest.param((1, 1, 1), (36, 35, 50), 3, 200, 2, (40, 40, 56), ["222"] * 3, 7, id="our axes, 2 GB"),
    pytest.param((1, 1, 1), (9, 12, 10), 2, 20, 8, (10, 12, 10), ["222"], 2, id="tiny"),
    pytest.param(
        (3, 0.76, 0.76), (148, 512, 512), 14, 30, 8,
        (48, 192, 192), ["122", "222", "222", "222", "122"], 2, id="BTCV",
    ),
    pytest.param(
        (10, 1.5625, 1.5625), (9, 256, 208), 4, 200, 8,
        (10, 256, 224), ["122", "122", "222", "122", "122"], 7, id="cardiac MRI (ACDC)",
    ),
    pytest.param(
        (2, 0.8, 0.8), (130, 512, 512), 3, 131, 8,
        (56, 192, 192), ["122", "222", "222", "222", "122"], 2, id="liver CT",
    ),
    pytest.param((1.25,) * 3, (80, 90, 100), 8, 10, 24, (80, 96, 112), ["222"] * 4, 2, id="few cases, 24 GB"),
    pytest.param((3, 1, 1), (16, 48, 48), 6, 6, 8, (16, 48, 48), ["122", "222", "222"], 2, id="phantom-like"),
]  # fmt: skip


@pytest.mark.parametrize(("spacing", "shape", "classes", "cases", "gb", "patch", "strides", "batch"), RECORDED)
def test_plan_is_that_of_nnunet(
    spacing: Any, shape: Any, classes: int, cases: int, gb: float, patch: Any, strides: list[str], batch: int
) -> None:
    plan = make_plan(fingerprint(spacing, shape, classes=classes, cases=cases), ["CT"], memory_gb=gb)
    assert plan.patch_size == patch
    assert plan.strides == tuple(tuple(int(digit) for digit in stride) for stride in strides)
    assert plan.batch_size == batch
    assert plan.spacing == pytest.approx(spacing)


def test_volumes_too_small_to_halve_still_get_two_levels() -> None:
    # nnU-Net plans patch (6, 7, 5) without strides here. An E2ENet has at least two levels.
    plan = make_plan(fingerprint((1, 1, 1), (6, 7, 5)), ["MRI"])
    assert plan.strides == ((2, 2, 2),) and plan.patch_size == (6, 8, 6)
    flat = make_plan(fingerprint((5, 1, 1), (1, 7, 7)), ["MRI"])
    assert flat.strides == ((1, 2, 2),) and flat.patch_size == (1, 8, 8)


def test_feature_map_size_by_hand() -> None:
    # 4^3 voxels, one stride: level 0 has 2 + 3 maps of 32 x 64, level 1 two of 64 x 8; three class maps of 64.
    assert feature_map_size((4, 4, 4), ((2, 2, 2),), 3) == 5 * 32 * 64 + 2 * 64 * 8 + 3 * 64


def test_thin_axis_takes_the_tenth_percentile() -> None:
    rows = [((thick, 1.0, 1.0), (20, 200, 200)) for thick in (5.0, 10.0, 10.0, 10.0, 10.0)]
    cases = tuple(CaseFingerprint(str(i), s, n, 1.0) for i, (s, n) in enumerate(rows))
    assert target_spacing(Fingerprint(2, 2, cases, (INTENSITIES,))) == pytest.approx((7.0, 1.0, 1.0))
    many_slices = tuple(CaseFingerprint(c.id, c.spacing, (100, 200, 200), 1.0) for c in cases)
    assert target_spacing(Fingerprint(2, 2, many_slices, (INTENSITIES,))) == (10.0, 1.0, 1.0)
    finer = tuple(
        CaseFingerprint(str(i), (thick, 1.0, 1.0), (20, 200, 200), 1.0)
        for i, thick in enumerate((0.5, 0.5, 10.0, 10.0, 10.0, 10.0))
    )
    assert target_spacing(Fingerprint(2, 2, finer, (INTENSITIES,)))[0] == pytest.approx(1.0, abs=1e-4)


def test_the_rounding_of_headers_decides_nothing() -> None:
    """A turned scan of 3 x 1 x 1 mm is read as 3.00000007 x 1.00000003 x 1 mm, or as less."""
    for noise in (-7e-8, 0, 7e-8):
        rows = [(2.5, 1.0), (3 + noise, 1.0), (3 + noise, 1.0), (3 + noise, 1.0)]
        cases = tuple(CaseFingerprint(str(i), (d, h, 1.0), (20, 200, 200), 1.0) for i, (d, h) in enumerate(rows))
        assert target_spacing(Fingerprint(2, 2, cases, (INTENSITIES,))) == (3.0, 1.0, 1.0)
        assert resampled_shape((5, 3, 301), (1.5 + noise,) * 3, (1, 1, 1)) == (8, 4, 452)
    assert resampled_shape((5, 5, 5), (1.501, 1.499, 1.5), (1, 1, 1)) == (8, 7, 8)


@pytest.mark.parametrize("noise", [-4e-8, 0.0, 4e-8])
def test_the_rounding_of_headers_does_not_choose_strides(noise: float) -> None:
    assert pooling_strides((2 + noise, 1, 1), (32, 32, 32))[0] == (1, 2, 2)
    assert pooling_strides((1.640625 + noise, 0.8203125, 0.8203125), (32, 32, 32))[0] == (1, 2, 2)
    assert tiny_stride((2 + noise, 1, 1), (4, 4, 4)) == (1, 2, 2)


def test_median_shape_is_at_the_target_spacing() -> None:
    plan = make_plan(fingerprint((2, 1, 1), (30, 64, 64)), ["MRI"], spacing=(4, 1, 2))
    assert plan.spacing == (4.0, 1.0, 2.0) and plan.median_shape == (15, 64, 32)
    assert resampled_shape((30, 10, 1), (3, 1, 0.1), (5, 1, 5)) == (18, 10, 1)


def test_paper_kind_fixes_five_strides_and_its_patch() -> None:
    plan = make_plan(fingerprint((5, 0.75, 0.75), (95, 512, 512)), ["CT"], kind="paper")
    assert plan.strides == ((2, 2, 2),) * 5 and plan.patch_size == (128, 128, 128) and plan.batch_size == 2
    smaller = make_plan(fingerprint((1, 1, 1), (50, 60, 70)), ["CT"], kind="paper", patch_size=[96, 96, 96])
    assert smaller.patch_size == (96, 96, 96) and smaller.strides == ((2, 2, 2),) * 5


def test_paper_patch_is_that_of_the_dataset() -> None:
    for name, patch in (("btcv", [96, 96, 96]), ("amos_ct", None), ("brats", None)):
        config = compose_data([f"data={name}", "plan=paper", "training=paper"]).config
        assert config.plan.patch_size == patch  # null: 128^3
    btcv = make_plan(fingerprint((3, 0.76, 0.76), (148, 512, 512)), ["CT"], kind="paper", patch_size=[96, 96, 96])
    assert len(btcv.strides) + 1 == 6  # levels


def test_overrides_hold_and_the_rest_is_fitted() -> None:
    small = fingerprint((1, 1, 1), (36, 50, 35), classes=3, cases=200)
    by_strides = make_plan(small, ["MRI"], strides=[[2, 2, 2]] * 4, batch_size=3)
    assert by_strides.patch_size == (48, 64, 48) and by_strides.batch_size == 3
    by_patch = make_plan(small, ["MRI"], patch_size=[16, 32, 32])
    assert by_patch.patch_size == (16, 32, 32)
    assert all(size % step == 0 for size, step in zip((16, 32, 32), total_stride(by_patch.strides), strict=True))
    both = make_plan(small, ["MRI"], patch_size=[8, 12, 10], strides=[[1, 2, 2]])
    assert both.patch_size == (8, 12, 10) and both.strides == ((1, 2, 2),)


def test_patch_that_does_not_fit_names_sizes_that_do() -> None:
    with pytest.raises(InputError, match=r"patch_size \[30, 64, 64\].*\[16, 64, 64\] or \[32, 64, 64\] would fit"):
        make_plan(fingerprint((1, 1, 1), (64,) * 3), ["CT"], patch_size=[30, 64, 64], strides=[[2, 2, 2]] * 4)


def test_every_impossible_value_is_reported_at_once() -> None:
    with pytest.raises(InputError) as caught:
        make_plan(
            fingerprint((1, 1, 1), (64,) * 3), ["CT"], kind="best", spacing=[1, 0, 1], patch_size=[8, 8],
            strides=[], batch_size=0, memory_gb=-1,
        )  # fmt: skip
    for name in (
        "kind is 'best'",
        "spacing is",
        "patch_size is",
        "strides is",
        "batch_size is 0",
        "memory_gb is -1",
    ):
        assert name in str(caught.value)


def test_too_little_memory_is_an_error_not_an_endless_search() -> None:
    with pytest.raises(InputError, match="memory_gb is 1e-07: no patch fits"):
        make_plan(fingerprint((1, 1, 1), (64,) * 3), ["CT"], memory_gb=1e-7)


def test_normalisation_follows_the_channel_name_and_the_crop() -> None:
    expected = {"scheme": "ct", "lower": -50.0, "upper": 200.0, "mean": 100.0, "std": 20.0}
    for name in ("CT", "ct"):
        assert make_plan(fingerprint((1, 1, 1), (32,) * 3), [name]).normalisation == (expected,)
    for name in ("MRI", "T1", "CTA"):
        assert make_plan(fingerprint((1, 1, 1), (32,) * 3), [name]).normalisation == (
            {"scheme": "zscore", "nonzero": False},
        )
    cropped = make_plan(fingerprint((1, 1, 1), (32,) * 3, relative=0.5), ["FLAIR"])
    assert cropped.normalisation == ({"scheme": "zscore", "nonzero": True},)


def test_dict_round_trip_is_plain_and_exact() -> None:
    plan = make_plan(fingerprint((5, 0.75, 0.75), (95, 512, 512)), ["CT"])
    content = plan.to_dict()
    assert Plan.from_dict(content) == plan
    assert not any(isinstance(value, (np.generic, tuple)) for value in content.values())
    with pytest.raises(InputError, match=r"spacing: is missing.*\n  - space: unknown key"):
        Plan.from_dict({("space" if key == "spacing" else key): value for key, value in content.items()})
