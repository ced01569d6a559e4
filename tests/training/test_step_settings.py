"""Training steps by engine, recomputed or compiled: equal results, and the effect of these keys on a run."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.inference.checkpoint import load_model
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.recompute import run_once
from e2enet.training.callbacks import TrainLossLogger
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import SegmentationModule
from e2enet.training.probe import STEPS, probe_step
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from tests.training.conftest import SMALL_RUN, differences, numbers, quiet_trainer
from tests.training.test_module import loader, make_module

RECOMPUTED = "training.checkpoint_activations=true"
PARTS = 2 + 1 + 1  # of the network of `make_module`: two stages, one node, its second block


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Let torch.compile run graphs eagerly, which needs no compiler, and count them."""
    dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter, fullgraph=True))
    yield counter
    dynamo.reset()


class Watch(pl.Callback):
    """Record the number of graphs after every batch."""

    def __init__(self, graphs: CompileCounterWithBackend) -> None:
        self.graphs, self.trained, self.validated = graphs, list[int](), list[int]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.trained.append(self.graphs.frame_count)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated.append(self.graphs.frame_count)


def fit(folder: Path, *overrides: str, growth: str = "gradient", **options: Any) -> tuple[SegmentationModule, Any]:
    """Train two epochs of four steps; masks change after every second step. Patches and whole cases are validated."""
    pl.seed_everything(0, verbose=False)
    module = make_module(*overrides)
    watched, group_size = options.pop("watched", []), options.pop("group_size", 1)
    granularity = "group" if group_size > 1 else "kernel"
    dsff = DSFFCallback(0.5, update_every=2, growth=growth, granularity=granularity, group_size=group_size)
    callbacks = TrainLossLogger(), dsff, *watched
    trainer = quiet_trainer(folder, *callbacks, max_epochs=2, gradient_clip_val=0.5, **options)
    trainer.fit(module, loader((2, 8, 8), 8, 2), [loader((2, 8, 8), 3, 2), loader((4, 10, 8), 2, 1)])
    return module, trainer


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_training_with_active_kernels_only_is_that_of_the_masked_network(growth: str, tmp_path: Path) -> None:
    masked, _ = fit(tmp_path, "training.engine=dense", growth=growth)
    sparse, trainer = fit(tmp_path, "training.engine=sparse", growth=growth)
    assert next(c for c in trainer.callbacks if isinstance(c, DSFFCallback)).num_updates == 3
    found, expected = sparse.state_dict(), masked.state_dict()
    for name in expected:  # gradient growth needs gradients of inactive kernels, which the engine does not compute
        if name.endswith("kernel_mask"):
            assert torch.equal(found[name], expected[name]), name
    # With AdamW, weights may differ where a gradient is near zero and its sign is chance. Losses do not differ.
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert differences(found, expected), "both ran the same way"


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_groups_as_a_gpu_runs_them_train_what_the_masked_network_does(
    growth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = "network.base_features=8"
    masked, _ = fit(tmp_path, "training.engine=dense", width, growth=growth, group_size=8)
    used: list[FusedNetwork] = []
    passes: list[FusedNetwork] = []

    def select(network: E2ENet, *_: Any, **__: Any) -> FusedNetwork:
        used.append(FusedNetwork(network, groups=True))
        used[-1].register_forward_hook(lambda grouped, *_: passes.append(grouped))
        return used[-1]

    monkeypatch.setattr("e2enet.training.module.select_training", select)
    monkeypatch.setattr("e2enet.training.module.select_validation", select)
    grouped, _ = fit(tmp_path, width, growth=growth, group_size=8)
    assert len(used) == 1 + 2  # training, and validation of two epochs
    found, expected = grouped.state_dict(), masked.state_dict()
    for name in expected:
        if name.endswith("kernel_mask"):
            assert torch.equal(found[name], expected[name]), name
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    # Steps that need gradients of inactive kernels for growth run the network itself.
    assert passes.count(used[0]) == (8 if growth == "random" else 5)
    assert all(validated in passes for validated in used[1:])
    assert grouped.scores == pytest.approx(masked.scores, abs=0.02)


def test_validation_runs_active_kernels_only_where_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[E2ENet] = []

    class Watched(CompactNetwork):
        def __init__(self, model: E2ENet, **options: Any) -> None:
            built.append(copy.deepcopy(model))
            super().__init__(model, **options)

    monkeypatch.setattr("e2enet.network.engine.inference.CompactNetwork", Watched)
    for engine, times in (("dense", 0), ("auto", 0), ("sparse", 2)):  # `auto`: the network is narrow
        built.clear()
        module, trainer = fit(tmp_path, f"training.engine={engine}")
        assert len(built) == times, engine
    first, second = (one.state_dict() for one in built)
    assert differences(first, second), "weights of the first validation stayed"
    assert differences(module.network.state_dict(), second) == []
    scores = dict(module.scores)
    module.training_config["engine"] = "dense"
    trainer.validate(module, [loader((2, 8, 8), 3, 2), loader((4, 10, 8), 2, 1)], verbose=False)
    assert len(built) == 2 and scores.keys() == module.scores.keys()
    assert module.scores == pytest.approx(scores, abs=0.01) and max(scores.values()) > 0.1


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_recomputed_training_ends_in_the_same_bits(
    growth: str, precision: Any, recomputed_parts: list[Any], tmp_path: Path
) -> None:
    kept, _ = fit(tmp_path, growth=growth, precision=precision)
    assert recomputed_parts == []
    recomputed, trainer = fit(tmp_path, RECOMPUTED, growth=growth, precision=precision)
    assert len(recomputed_parts) == 8 * PARTS  # in training steps alone, not in validation
    assert differences(recomputed.state_dict(), kept.state_dict()) == []
    assert recomputed.scores == kept.scores
    assert next(c for c in trainer.callbacks if isinstance(c, DSFFCallback)).num_updates == 3


def test_the_trial_before_training_recomputes_too(recomputed_parts: list[Any], tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    probe_step(trainer, make_module())
    assert recomputed_parts == []
    probe_step(trainer, make_module(RECOMPUTED))
    assert len(recomputed_parts) == STEPS * PARTS


def test_a_step_that_does_not_fit_is_advised_to_recompute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr("e2enet.training.probe._seconds_of_step", refuse)
    trainer = quiet_trainer(tmp_path)
    advice = r"network\.base_features, training\.checkpoint_activations=true$"
    with pytest.raises(InputError, match=advice):
        probe_step(trainer, make_module())
    for overrides in ([RECOMPUTED], ["network=swin_unetr"]):  # already on; not supported
        with pytest.raises(InputError, match=r"network\.base_features$"):
            probe_step(trainer, make_module(*overrides))


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match=r"SwinUNETR keeps its activations; expected false, or network=e2enet"):
        make_module(RECOMPUTED, "network=swin_unetr")


def test_a_resumed_run_may_change_it_and_ends_in_the_same_bits(recomputed_parts: list[Any], tmp_path: Path) -> None:
    overrides = [
        *SMALL_RUN,
        *("data.num_test=0", "data.num_workers=0", "training.epochs=2", "training.steps_per_epoch=3"),
        *("training.validate_full=0", "dsff.update_every=2", "optimizer.lr=0.01", "trainer.probe=false"),
        *(f"paths.data={tmp_path}/data", f"paths.prepared={tmp_path}/prepared"),
    ]
    folders = {key: tmp_path / key for key in ("first", "kept", "recomputed")}
    run_training(compose_config([*overrides, f"run_folder={folders['first']}"]), folders["first"])
    assert recomputed_parts == []
    for name, more in (("kept", []), ("recomputed", [RECOMPUTED])):
        shutil.copytree(folders["first"], folders[name])
        given = [f"resume={folders[name]}", "training.epochs=3", *more]
        run_training(resumed_config(compose_config(given), given), folders[name])
    assert len(recomputed_parts) == 3 * (3 + 3 + 2)  # three stages, three nodes, of which two have a second block
    kept, recomputed = (
        torch.load(folders[name] / "checkpoints" / "last.ckpt", weights_only=True) for name in ("kept", "recomputed")
    )
    assert kept["global_step"] == recomputed["global_step"] == 9
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(recomputed[part], kept[part]) == []
    assert numbers(folders["recomputed"]) == numbers(folders["kept"])
    # Prediction does not recompute.
    loaded = load_model(folders["recomputed"] / "checkpoints" / "last.ckpt")
    assert loaded.network.run_part is run_once


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_a_run_compiles_one_graph(
    recomputed: str, precision: Any, graphs: CompileCounterWithBackend, tmp_path: Path
) -> None:
    watch = Watch(graphs)
    settings = "training.compile=true", f"training.checkpoint_activations={recomputed}"
    module, trainer = fit(tmp_path, *settings, precision=precision, watched=[watch])
    assert watch.trained == [1] * 8 and watch.validated == [1] * 2 * 4
    assert next(c for c in trainer.callbacks if isinstance(c, DSFFCallback)).num_updates == 3
    assert all(name.startswith("network.") and "_orig_mod" not in name for name in module.state_dict())


@pytest.mark.parametrize("probe", ["false", "true"])
def test_a_whole_run_compiles_one_graph(probe: str, graphs: CompileCounterWithBackend, tmp_path: Path) -> None:
    """The run counts its cost before the first step. This pass must not be compiled."""
    overrides = [
        *SMALL_RUN,
        *("data.num_test=0", "data.num_workers=0", "training.epochs=1", "training.steps_per_epoch=2"),
        *("training.validate_full=0", f"trainer.probe={probe}", "training.compile=true"),
        *(f"paths.data={tmp_path}/data", f"paths.prepared={tmp_path}/prepared", f"run_folder={tmp_path}/run"),
    ]
    run_training(compose_config(overrides), tmp_path / "run")
    assert graphs.frame_count == 1


def test_compiled_training_learns_the_same(graphs: CompileCounterWithBackend, tmp_path: Path) -> None:
    sgd = "optimizer._target_=torch.optim.SGD"  # AdamW turns rounding of zero gradients into whole steps
    plain, _ = fit(tmp_path / "plain", sgd, growth="random")
    assert graphs.frame_count == 0
    compiled, _ = fit(tmp_path / "compiled", sgd, "training.compile=true", growth="random")
    assert graphs.frame_count == 1
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-5)


def test_validation_of_compiled_training_is_that_of_the_plain_network(
    graphs: CompileCounterWithBackend, tmp_path: Path
) -> None:
    compiled, trainer = fit(tmp_path, "training.compile=true")
    found = dict(compiled.scores)
    plain = make_module()
    plain.load_state_dict(compiled.state_dict())
    trainer.validate(plain, [loader((2, 8, 8), 3, 2), loader((4, 10, 8), 2, 1)], verbose=False)
    assert found == plain.scores and set(found) == {"val/dice", "val_full/dice"}
