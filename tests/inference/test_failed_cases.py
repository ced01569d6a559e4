"""A case that cannot be predicted is reported with its name and reason; the other cases are predicted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import read_volume
from e2enet.data.planning.plan import Plan
from e2enet.inference.checkpoint import LoadedModel, load_model
from e2enet.inference.forecast import forecast_memory, require_room_to_predict, require_room_to_read
from e2enet.inference.predictor import WindowSettings, predict_case, predict_cases
from e2enet.inference.sliding_window import NotFiniteError, predict_probabilities
from e2enet.system.memory import empty_caches

PATCH = (4, 8, 8)


class Edited(nn.Module):
    """A network whose logits are changed by a function."""

    def __init__(self, network: nn.Module, edit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.edit = network, edit

    def forward(self, x: Tensor) -> Tensor:
        return self.edit(self.network(x))


def bright(x: Tensor) -> Tensor:
    """Return logits (x, -x) of a scan's first channel."""
    return torch.cat([x[:, :1], -x[:, :1]], dim=1)


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    """Return a function that sets one logit of the last window's last voxel."""

    def edit(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[-1, -1, -1, -1, -1] = value
        return logits

    return edit


def saved(path: Path, values: np.ndarray, factor: float = 1.0) -> Case:
    """Save a scan with voxels of 1 x 1.2 x 3 mm times `factor`; return its case."""
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([factor, 1.2 * factor, 3 * factor, 1])), path)
    return Case(path.name.removesuffix(".nii.gz"), (path,))


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Three scans. b is nine orders of magnitude brighter."""
    values = np.random.default_rng(0).normal(size=(9, 10, 5)) + 3
    return [saved(tmp_path / f"{name}.nii.gz", values * (1e9 if name == "b" else 1)) for name in "abc"]


@pytest.fixture
def model(write_checkpoint: Callable[..., Path]) -> LoadedModel:
    """A model without normalisation."""
    model = load_model(write_checkpoint())
    return replace(model, plan=replace(model.plan, normalisation=({"scheme": "none"},)))


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_logit_that_is_not_finite_is_an_error_with_the_precision(value: float, dtype: torch.dtype) -> None:
    network = Edited(nn.Identity(), lambda x: with_one(value)(bright(x)).to(dtype))
    amp = None if dtype == torch.float32 else torch.bfloat16
    with pytest.raises(NotFiniteError, match="NaN or infinite in precision " + str(amp or dtype)):
        predict_probabilities([network], torch.randn(1, 7, 9, 8), PATCH, mirror_axes=(1,), amp_dtype=amp)


def test_large_finite_logits_are_none(model: LoadedModel) -> None:
    # In half precision, 256 voxels of 60000 add up to far more than float16 can hold.
    network = Edited(nn.Identity(), lambda x: (0 * bright(x) + 60000).half())
    result = predict_probabilities([network], torch.randn(1, *PATCH), PATCH)
    assert torch.equal(result, torch.full((2, *PATCH), 0.5))


def test_half_precision_is_told_of_wider_ones() -> None:
    network = Edited(nn.Identity(), lambda x: bright(x) * float("inf"))
    with pytest.raises(NotFiniteError) as caught:
        predict_probabilities([network], torch.ones(1, *PATCH), PATCH, amp_dtype=torch.float16)
    assert "torch.float16" in str(caught.value) and "precision=bf16" in str(caught.value)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_case_whose_output_is_not_finite_fails_and_leaves_no_file(
    broken: int, cases: list[Case], model: LoadedModel, tmp_path: Path
) -> None:
    """Either network of the ensemble may give the output."""
    edited = Edited(model.network, lambda logits: logits)

    def overflow(x: Tensor) -> Tensor:
        return edited.network(x) / (x.abs().amax() < 1e6)  # a division by zero in case b

    models = [model, model]
    edited.forward = overflow  # type: ignore[method-assign]
    models[broken] = replace(model, network=edited)
    failures = predict_cases(models, cases, tmp_path / "out", WindowSettings(), probabilities=True, overlay=True)
    assert list(failures) == ["b"]
    assert failures["b"].startswith(f"{cases[1].images[0]}: the network's output is NaN or infinite in precision")
    assert "torch.float32" in failures["b"]
    assert written(tmp_path / "out") == ["a.nii.gz", "a.npz", "a.png", "c.nii.gz", "c.npz", "c.png"]


@pytest.mark.parametrize(
    ("factor", "told"), [(1e3, "predicting takes at least"), (1e-3, "less than one along D, H, W")]
)
def test_a_spacing_that_leaves_no_voxel_or_too_many_fails_by_name(
    factor: float, told: str, cases: list[Case], model: LoadedModel, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).normal(size=(9, 10, 5)) + 3
    odd = saved(tmp_path / "odd.nii.gz", values, factor)
    failures = predict_cases([model], [cases[0], odd, cases[2]], tmp_path / "out", WindowSettings())
    assert list(failures) == ["odd"] and told in failures["odd"]
    spacing = {1e3: "3000 x 1000 x 1200", 1e-3: "0.003 x 0.001 x 0.0012"}[factor]
    assert f"{odd.images[0]}: 5 x 9 x 10 voxels (D, H, W) of {spacing} mm" in failures["odd"]
    assert written(tmp_path / "out") == ["a.nii.gz", "c.nii.gz"]


def test_one_thin_slice_is_predicted(model: LoadedModel, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 10, 1)) + 3
    assert predict_cases([model], [saved(tmp_path / "a.nii.gz", values, 0.4)], tmp_path / "out", WindowSettings()) == {}


def test_what_is_forecast_is_held_at_once() -> None:
    plan = Plan(2, (3.0, 1.0, 1.0), (4, 8, 8), ((1, 2, 2),), 2, ({"scheme": "none"},) * 2, (5, 8, 8))
    raw, small = 16 * 16 * 20, 8 * 8 * 10
    scan: Any = {"whole": (20, 16, 16), "spacing": (1.5, 0.5, 0.5), "plan": plan, "channels": 2}
    # Preprocessing takes most: 2 channels, the normalised copy of one, and both resampled.
    assert forecast_memory(cropped=scan["whole"], classes=3, **scan) == 4 * (3 * raw + 2 * small)
    assert forecast_memory(cropped=(10, 8, 16), classes=3, **scan) == 4 * (2 * raw + raw // 4 + 2 * 5 * 4 * 8)
    # With many classes, prediction takes most: the sums of four planes with weights, and two planes of the scan.
    later = 2 * small + 4 * 65 * 8 * 8 + 2 * 64 * 16 * 16 + raw // 4
    assert forecast_memory(cropped=scan["whole"], classes=64, **scan) == 4 * later


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are free, and bytes that the allocator returns on request."""
    memory = {"free": 0, "back": 0}

    def give_back() -> bool:
        memory["free"] += memory.pop("back", 0)
        return True

    monkeypatch.setattr("e2enet.inference.forecast.available_memory", lambda: memory["free"])
    monkeypatch.setattr("e2enet.inference.forecast.give_back_freed_memory", give_back)
    return memory


def test_the_forecast_asks_for_what_earlier_cases_left(
    cases: list[Case], model: LoadedModel, memory: dict[str, int]
) -> None:
    memory["free"] = 10**3
    with pytest.raises(InputError, match=r"a\.nii\.gz: 5 x 9 x 10 voxels .* take 0\.0 MB of memory, 0\.0 MB are free"):
        predict_case([model], cases[0], WindowSettings())
    memory["back"] = 10**6
    require_room_to_read(cases[0], model)
    memory |= {"free": 10**3, "back": 10**6}
    require_room_to_predict(read_volume(cases[0].images, model.plan.depth_axis), model)
    assert memory == {"free": 10**6 + 10**3}


def test_a_margin_of_zeros_needs_no_room(model: LoadedModel, memory: dict[str, int], tmp_path: Path) -> None:
    """The margin is cropped before resampling, which here gives 40 times as many voxels."""
    values = np.zeros((36, 40, 20))
    values[4:13, 8:18, 3:8] = np.random.default_rng(0).normal(size=(9, 10, 5)) + 3
    within, full = saved(tmp_path / "a.nii.gz", values, 3.4), saved(tmp_path / "b.nii.gz", values + 1, 3.4)
    memory["free"] = 10**6
    volume = read_volume(within.images, model.plan.depth_axis)
    require_room_to_predict(volume, model)
    told = (
        r"b\.nii\.gz: 20 x 36 x 40 .* are 68 x 102 x 163 at .* 1 mm: predicting takes at least 5\.6 MB of memory, 1\.1"
    )
    with pytest.raises(InputError, match=told):
        predict_case([model], full, WindowSettings())
    memory["free"] = 5 * 10**4
    with pytest.raises(
        InputError, match=r"^20 x .* are 17 x .* mm without their margin of zeros: predicting .* 0\.2 MB"
    ):
        require_room_to_predict(volume, model)


def test_memory_is_emptied_after_an_error_and_prediction_goes_on(
    cases: list[Case], model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    alive: list[bool] = []

    class Block:
        """Memory of the failed case."""

    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.abs().amax() > 1e6:
                block = Block()
                held.append(weakref.ref(block))
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return model.network(x)

    def emptied() -> None:
        empty_caches()
        alive.append(held[0]() is not None)

    monkeypatch.setattr("e2enet.inference.predictor.empty_caches", emptied)
    hungry = replace(model, network=Hungry())
    failures = predict_cases([hungry], cases, tmp_path / "out", WindowSettings())
    assert failures == {"b": "OutOfMemoryError: CUDA out of memory."}
    assert alive == [False]  # called once, after the failed case was released
    assert written(tmp_path / "out") == ["a.nii.gz", "c.nii.gz"]
