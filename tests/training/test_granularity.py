"""Runs with masks of groups: invariants after every step, resuming, and the contents of checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.configuration.check import config_problems
from e2enet.inference.checkpoint import load_model
from e2enet.network import dsff
from e2enet.network.cost import count_cost
from e2enet.network.granularity import shared_inputs
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from tests.training.conftest import SMALL_RUN, differences, first_gradients, numbers

GROUP = ["dsff.granularity=group", "dsff.group_size=8"]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.01)


class Watch(pl.Callback):
    """Record after every batch which inputs each group reads, and check that all other weights are exactly zero."""

    def __init__(self) -> None:
        self.tables: list[dict[str, list[list[int]]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        tables = {}
        for name, layer in dsff.fusion_layers(pl_module).items():
            table = shared_inputs(layer)
            assert table is not None
            tables[name] = table.tolist()
            tensors = [layer.weight, *trainer.optimizers[0].state[layer.weight].values()]
            for tensor in (tensor for tensor in tensors if tensor.shape == layer.weight.shape):
                assert torch.all(tensor[~layer.kernel_mask] == 0) and torch.any(tensor[layer.kernel_mask] != 0)
        self.tables.append(tables)


@pytest.mark.parametrize(("growth", "start"), [("random", "uniform"), ("gradient", "erk")])
def test_groups_hold_through_steps_and_change_together(tiny_sparse, fit_tiny, growth: str, start: str) -> None:
    module, watch = tiny_sparse(adamw), Watch()
    callback = DSFFCallback(0.5, update_every=2, growth=growth, start=start, granularity="group", group_size=4)
    trainer = fit_tiny(module, callback, watch, batches=7)
    assert callback.num_updates == 3
    changed = [one != other for one, other in zip(watch.tables, watch.tables[1:], strict=False)]
    # Masks change after every second step only, and not always: pruned inputs may grow again at once.
    assert any(changed[::2]) and not any(changed[1::2])
    # (6, 4) and (5, 6) have two groups each: 4 + 2 and 4 + 1 output channels.
    shapes = {tuple(torch.tensor(tables["first"]).shape) for tables in watch.tables}
    assert len(shapes) == 1 and shapes.pop()[0] == len(watch.tables[0]["second"]) == 2
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    masks = [module.first.kernel_mask, module.second.kernel_mask]
    assert logged["dsff/density"] == pytest.approx(sum(int(mask.sum()) for mask in masks) / 54)
    ever = sum(int(mask.sum()) for mask in callback.ever_active.values())
    assert (
        logged["dsff/ever_active"] == pytest.approx(ever / 54) and logged["dsff/ever_active"] > logged["dsff/density"]
    )
    assert logged["dsff/share_up"] == pytest.approx(
        float((masks[0][:, 2].sum() + masks[1][:, 3:].sum()) / sum(mask.sum() for mask in masks))
    )


def test_gradients_of_a_group_are_added_up(tiny_sparse, fit_tiny) -> None:
    regrown: dict[str, Tensor] = {}

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if not regrown:
                for name, layer in dsff.fusion_layers(pl_module).items():
                    regrown[name] = layer.kernel_mask[0] & (layer.weight.abs().sum((0, 2, 3, 4)) == 0)

    module, watch = tiny_sparse(adamw), Watch()
    gradients = first_gradients(module)
    schedule: dict[str, Any] = {"fraction_schedule": "constant", "fraction_initial": 0.5}
    masks = DSFFCallback(0.5, update_every=1, growth="gradient", granularity="group", group_size=8, **schedule)
    fit_tiny(module, masks, Record(), watch, batches=2)
    assert set(gradients) == {"first", "second"}
    for name, gradient in gradients.items():
        score = gradient.abs().sum((0, 2, 3, 4))  # summed over all output channels
        inactive = torch.ones(len(score), dtype=torch.bool)
        inactive[watch.tables[0][name][0]] = False
        assert int(regrown[name].sum()) == {"first": 1, "second": 2}[name]  # ceil(0.5 * 2) and ceil(0.5 * 3)
        assert score[regrown[name]].min() >= score[inactive].max() > 0


def test_masks_of_another_structure_are_not_gone_on_with(tiny_sparse, fit_tiny, tmp_path: Path) -> None:
    trainer = fit_tiny(tiny_sparse(adamw), DSFFCallback(0.5, update_every=2), batches=3)
    trainer.save_checkpoint(tmp_path / "kernels.ckpt")
    groups = DSFFCallback(0.5, update_every=2, granularity="group", group_size=8)
    with pytest.raises(ValueError, match="first: a mask is not shared by groups of 8 output channels"):
        fit_tiny(tiny_sparse(adamw), groups, batches=3, max_epochs=2, ckpt_path=tmp_path / "kernels.ckpt")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run on the phantom. Its layers have 12 and 24 output channels: groups of 8 + 4, and of 8."""
    root = tmp_path_factory.mktemp("granularity")
    own = ["network.base_features=12", "data.num_test=0", "data.num_workers=0", "training.validate_full=0"]
    steps = ["training.epochs=2", "training.steps_per_epoch=5", "dsff.update_every=2", "trainer.probe=false"]
    paths = [f"paths.data={root}/data", f"paths.prepared={root}/prepared"]
    # The schedule must not depend on the length of the run, which the first half does not know.
    fixed = ["schedule._target_=e2enet.training.schedules.constant", "~schedule.warmup"]
    return [*SMALL_RUN, *own, *steps, *paths, *fixed, "dsff.fraction_schedule=constant"]


def train(given: list[str], folder: Path, *, resume: bool = False) -> dict[str, Any]:
    given = [*given, f"resume={folder}"] if resume else [*given, f"run_folder={folder}"]
    run_training(resumed_config(compose_config(given), given) if resume else compose_config(given), folder)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with groups of 8 and gradient growth."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train([*overrides, *GROUP, "dsff.growth=gradient"], folder)
    return folder


def test_a_run_on_the_phantom_says_what_its_masks_share(whole: Path) -> None:
    network = load_model(whole).network
    for name, layer in dsff.fusion_layers(network).items():
        table = shared_inputs(layer)
        assert table is not None and table.shape == (-(-layer.out_channels // 8), round(0.2 * layer.in_channels)), name
        assert torch.count_nonzero(layer.weight[~layer.kernel_mask]) == 0
    assert {layer.out_channels for layer in dsff.fusion_layers(network).values()} == {12, 24}
    cost = json.loads((whole / "cost.json").read_text())
    counted = count_cost(network, cost["patch_size"])
    assert (cost["exact"]["params"], cost["exact"]["flops"]) == (counted.params, counted.flops)
    assert cost["density"] == pytest.approx(dsff.density(network))
    flows = json.loads((whole / "connections.json").read_text())
    assert sum(flow["active"] for flow in flows) / sum(flow["kernels"] for flow in flows) == cost["density"]
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    densities = [float(row["dsff/density"]) for row in rows if row["dsff/density"]]
    assert densities == pytest.approx([cost["density"]] * 2)
    assert all(0 < float(row["dsff/churn"]) <= 0.6 for row in rows if row["dsff/churn"])


def test_a_resumed_run_ends_as_the_whole_one(whole: Path, overrides: list[str], tmp_path: Path) -> None:
    # The first half ends with step 5. Its last step has no update, and none is due then.
    train([*overrides, *GROUP, "dsff.growth=gradient", "training.epochs=1"], tmp_path / "halves")
    resumed = train(["training.epochs=2"], tmp_path / "halves", resume=True)
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "optimizer_states", "global_step", "hyper_parameters"):
        assert differences(resumed[key], expected[key]) == [], key
    assert differences(resumed["callbacks"]["DSFFCallback"], expected["callbacks"]["DSFFCallback"]) == []
    assert expected["callbacks"]["DSFFCallback"]["num_updates"] == 4
    assert numbers(tmp_path / "halves") == numbers(whole)


@pytest.mark.parametrize("change", ["dsff.granularity=kernel", "dsff.group_size=16"])
def test_a_resumed_run_keeps_its_granularity(change: str, whole: Path) -> None:
    with pytest.raises(InputError, match=f"{change}: the run has"):
        train([change], whole, resume=True)
    edited = whole / "config.yaml"
    before = edited.read_text()
    key, value = change.split("=")
    edited.write_text(before.replace(f"{key[5:]}: {'group' if value == 'kernel' else 8}\n", f"{key[5:]}: {value}\n"))
    try:
        with pytest.raises(InputError, match=f"{key}: the run has .*, now {value}"):
            train([], whole, resume=True)
    finally:
        edited.write_text(before)


@pytest.mark.parametrize("schedule", ["set", "rigl", "static"])
def test_every_schedule_has_groups(schedule: str, overrides: list[str], tmp_path: Path) -> None:
    given = [text for text in overrides if "fraction_schedule" not in text]
    train([*given, f"dsff={schedule}", *GROUP, "training.epochs=1", "dsff.update_every=2"], tmp_path / "run")
    layers = dsff.fusion_layers(load_model(tmp_path / "run").network)
    assert all(shared_inputs(layer) is not None for layer in layers.values())


def test_groups_have_no_effect_without_masks(overrides: list[str], tmp_path: Path) -> None:
    short = ["dsff=dense", "training.epochs=1", "training.steps_per_epoch=2"]
    plain = train([*overrides, *short], tmp_path / "plain")
    grouped = train([*overrides, *short, *GROUP], tmp_path / "grouped")
    assert differences(grouped["state_dict"], plain["state_dict"]) == []


def test_transferred_masks_keep_their_granularity(whole: Path, overrides: list[str], tmp_path: Path) -> None:
    start = [*overrides, "training.epochs=1", "training.steps_per_epoch=2", f"initial_weights={whole}"]
    kept = train([*start, *GROUP, "dsff=static"], tmp_path / "same")["state_dict"]
    source = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    masks = [name for name in source if name.endswith("kernel_mask")]
    assert masks and all(torch.equal(kept[name], source[name]) for name in masks)
    for name, other in (("kernels", []), ("larger", ["dsff.granularity=group", "dsff.group_size=16"])):
        with pytest.raises(InputError, match="its masks are of groups of 8 output channels") as caught:
            train([*start, *other], tmp_path / name)
        assert str(whole / "checkpoints" / "best.ckpt") in str(caught.value)
    dense = train([*start, "dsff=dense"], tmp_path / "dense")["state_dict"]
    assert all(bool(dense[name].all()) for name in masks)


def test_a_pretraining_of_another_granularity_is_told_before_it_starts(overrides: list[str]) -> None:
    def problems(*more: str) -> list[str]:
        return config_problems(compose_config([*overrides, *GROUP, *more]))

    assert problems("pretraining=['data.name=other']") == []
    assert problems("pretraining=['data.name=other','dsff.enabled=false','dsff.granularity=kernel']") == []
    assert problems("pretraining=['data.name=other','dsff.granularity=kernel']") == [
        "pretraining: dsff.granularity=kernel dsff.group_size=8: the run starts with its masks; "
        "expected dsff.granularity=group dsff.group_size=8, or dsff.enabled=false"
    ]
    assert problems("pretraining=['dsff.granularity=x']") == [
        "pretraining: dsff.granularity=x: expected kernel | group"
    ]
