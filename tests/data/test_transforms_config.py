"""Augmentation in a config: how an entry becomes a step, and mistakes that are told before anything starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.common.overrides import renamed
from e2enet.configuration.check import check_command_line, config_problems
from e2enet.data.augmentation.recipe import build_augmentation, read_recipe
from e2enet.data.command import build_datamodule
from e2enet.runs.job_key import job_key
from e2enet.training.records import write_config
from e2enet.training.resume import resumed_config, run_identity
from tests.data.own_steps import HERE, PATCH


def test_a_config_entry_becomes_a_step_of_the_data_module() -> None:
    nested = (
        "{_target_: torchio.OneOf, transforms: [{_target_: torchio.RandomBlur}, {_target_: torchio.RandomGhosting}]}"
    )
    given = [
        "++augmentation.one={_target_: torchio.RandomBiasField, coefficients: 0.3, p: 0.5}",
        f"++augmentation.two={nested}",
    ]
    config = compose_config([*given, "augmentation.noise=null", "data.augment_on=device"])
    assert config_problems(config) == []
    module = build_datamodule(config)
    assert module.augment_on == "device"
    steps = build_augmentation(PATCH, (), module.augmentation).steps
    assert list(steps)[-2:] == ["one", "two"] and "noise" not in steps
    bias = steps["one"].transform  # type: ignore[attr-defined]
    assert bias.probability == 0.5 and bias.coefficients_range == (-0.3, 0.3)


def told(*given: str) -> str:
    with pytest.raises(InputError) as caught:
        check_command_line(given)
    return str(caught.value)


def test_every_mistake_is_told_before_anything_starts() -> None:
    text = told(
        "augmentation.a={_target_: torchio.RandomBiasFiel}",
        "augmentation.b={_target_: torchio.RandomGamma, logg: 3}",
        "augmentation.noise.p=1.5",
        "augmentation.blur.strenght=[1,2]",
        "augmentation.spatial.degrees=200",
        "augmentation.mirror.mirror_axes=[0]",
        "augmentation.contrast.strength=0.5",
        "augmentation.order=[nois,blur,blur]",
        "data.transforms=[]",
    )
    for words in (
        "augmentation.a._target_: torchio.RandomBiasFiel cannot be imported",
        "augmentation.noise.p=1.5: expected a number in [0, 1]",
        "augmentation.blur.strenght: unknown key; did you mean augmentation.blur.strength?",
        "augmentation.spatial.degrees=200: expected a number in [0, 180]",
        "augmentation.mirror.mirror_axes: unknown key",
        "augmentation.contrast.strength=0.5: expected a list of 2 items",
        "augmentation.order: nois is no step; did you mean noise?; blur stands twice; lacks spatial, noise, brightness",
        "gamma, mirror, a, b (a step that is null may be left out)",
        "data.transforms: each is a step of the group augmentation now",
    ):
        assert words in text, text


def test_steps_are_built_and_tried_before_anything_starts() -> None:
    text = told(
        "augmentation.a={_target_: torchio.RandomBlur, sdt: 3}",
        "augmentation.b={_target_: torch.nn.ReLU}",
        "augmentation.c={_target_: torchio.RandomNoise, p: 3}",
        "augmentation.contrast.strength=[0.5,0.9]",
        "augmentation.d={_target_: torchio.CropOrPad, target_shape: 4}",
        f"augmentation.e={{_target_: {HERE}.Wrong, how: raises}}",
        f"augmentation.f={{_target_: {HERE}.Wrong, how: unpicklable}}",
    )
    for words in (
        "augmentation.a: torchio.RandomBlur cannot be built: ",
        "augmentation.b: torch.nn.ReLU is a ReLU; an AugmentationStep, or a transform of TorchIO or MONAI expected",
        "augmentation.c: torchio.RandomNoise cannot be built: ",
        "intensity_steps.Contrast cannot be built: strength=[0.5, 0.9]: [low, high] expected, 1 between them",
        "augmentation.d: CropOrPad changes the image from (1, 16, 32, 32) to (1, 4, 4, 4)",
        "augmentation.e: ZeroDivisionError: nothing left (on a patch of [16, 32, 32] voxels)",
        "augmentation.f: ",
    ):
        assert words in text, text


def test_the_recipe_by_its_earlier_name() -> None:
    assert renamed("data.augmentation=mirror") == "augmentation=mirror"
    assert renamed("data.augment_on=device") == "data.augment_on=device"
    assert list(compose_config(["augmentation=mirror"]).augmentation) == ["order", "mirror"]
    assert "data.augmentation: is a group of its own now" in told("++data={augmentation: mirror}")


def test_another_order_is_another_job() -> None:
    def content(*given: str) -> dict[str, Any]:
        return as_plain(compose_config([*given, "run_folder=x"]))

    names = [name for name in read_recipe("nnunet") if name != "order"]
    turned = f"augmentation.order=[{','.join(reversed(names))}]"
    plain = content()
    assert job_key(content(f"augmentation.order=[{','.join(names)}]")) == job_key(plain) != job_key(content(turned))
    swapped = {**plain, "augmentation": dict(reversed(plain["augmentation"].items()))}
    assert job_key(swapped) == job_key(content(turned))


def test_a_run_does_not_go_on_with_another_recipe(tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", compose_config([f"run_folder={tmp_path}"]))
    for given, told_of in (
        ("augmentation.noise.p=0.3", r"augmentation.noise.p=0.3: the run has 0.1"),
        ("augmentation.blur=null", r"augmentation.blur=None: the run has {'_target_'"),
        ("augmentation=mirror", r"augmentation=mirror: augmentation.spatial._target_ would be None"),
    ):
        line = [f"resume={tmp_path}", given]
        with pytest.raises(InputError, match=told_of):
            resumed_config(compose_config(line), line)
    data: Any = SimpleNamespace(
        plan=SimpleNamespace(to_dict=dict), train_cases=[], val_cases=[], dataset=SimpleNamespace()
    )
    data.dataset.scheme = SimpleNamespace(to_plain=dict)
    plain = as_plain(compose_config([f"run_folder={tmp_path}"]))
    swapped = {**plain, "augmentation": dict(reversed(plain["augmentation"].items()))}
    had, now = run_identity(plain, data), run_identity(swapped, data)
    assert [key for key in had if had[key] != now[key]] == ["augmentation.order"]
