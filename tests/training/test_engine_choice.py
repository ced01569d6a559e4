"""training.engine=auto on a GPU: tried once, kept in probe.json, and taken again by a resumed run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from e2enet.network import e2enet
from e2enet.network.dsff import density
from e2enet.network.engine import select
from e2enet.network.engine.training import TrainingEngine
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.fused.trial import CPU_WAYS, Choice, Trial
from e2enet.training import engine_choice
from e2enet.training.engine_choice import choose_engine, chosen_engine
from e2enet.training.probe import probe_step
from tests.training.conftest import quiet_trainer
from tests.training.test_module import make_module
from tests.training.test_step_settings import fit

TRIALS = {"dense": Trial(2.0), "fused": Trial(1.0), "compiled": Trial(None, "RuntimeError: no compiler")}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Take this machine for one with a GPU, and keep what was asked for."""
    asked: list[dict[str, Any]] = []

    def choose(network: Any, **workload: Any) -> Choice:
        asked.append(workload)
        return Choice("fused", TRIALS)

    monkeypatch.setattr(engine_choice, "_has_ways", lambda device, amp_dtype: True)
    monkeypatch.setattr(engine_choice, "_name", lambda device: device.type)
    monkeypatch.setattr(engine_choice, "choose_way", choose)
    return asked


def test_the_choice_is_told_kept_and_taken(
    trials: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer = make_module(), quiet_trainer(tmp_path)
    choose_engine(trainer, module, measure=True)
    plan = module.plan
    workload = {"batch_size": plan.batch_size, "patch_size": plan.patch_size, "amp_dtype": None, "ways": CPU_WAYS}
    assert trials == [workload]
    assert module.way == "fused"
    assert isinstance(module.training_pass(module.network), FusedNetwork)
    text = " ".join(capsys.readouterr().out.split())
    assert "takes fused: a step without the optimizer takes dense 2.000 s, fused 1.000 s, compiled left out" in text
    kept = json.loads((tmp_path / "probe.json").read_text())["engine"]
    assert kept == {
        "device": "cpu",
        "torch": torch.__version__,
        "workload": kept["workload"],
        "way": "fused",
        "trials": {
            "dense": {"seconds": 2.0, "problem": None},
            "fused": {"seconds": 1.0, "problem": None},
            "compiled": {"seconds": None, "problem": "RuntimeError: no compiler"},
        },
    }
    probe_step(trainer, module)
    after = json.loads((tmp_path / "probe.json").read_text())
    assert after["engine"] == kept and after["seconds"] > 0


def test_a_resumed_run_goes_on_as_it_began(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    choose_engine(quiet_trainer(tmp_path), make_module(), measure=True)
    again = make_module()
    choose_engine(quiet_trainer(tmp_path), again, measure=True)
    assert again.way == "fused" and len(trials) == 1
    other = json.loads(file.read_text())["engine"] | {"way": "compiled"}
    for number, changed in enumerate(
        (other | {"device": "another GPU"}, other | {"way": "another"}, other | {"workload": "another"}, "damaged"),
        start=2,
    ):
        file.write_text(json.dumps({"engine": changed}))
        again = make_module()
        choose_engine(quiet_trainer(tmp_path), again, measure=True)
        assert again.way == "fused" and len(trials) == number
    file.write_text("{")  # damaged: tried again
    choose_engine(quiet_trainer(tmp_path), make_module(), measure=True)
    assert len(trials) == 6
    larger = make_module()  # begun anew in the folder of a start that failed
    larger.plan = dataclasses.replace(larger.plan, batch_size=larger.plan.batch_size + 1)
    choose_engine(quiet_trainer(tmp_path), larger, measure=True)
    assert len(trials) == 7


def test_ways_are_tried_with_the_density_of_most_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def choose(network: Any, **_: Any) -> Choice:
        seen.append(density(network))
        return Choice("dense", TRIALS)

    monkeypatch.setattr(engine_choice, "_has_ways", lambda device, amp_dtype: True)
    monkeypatch.setattr(engine_choice, "choose_way", choose)
    for final in (None, 0.2, 0.2, 0.5):
        module = make_module()
        module.final_density = final
        choose_engine(quiet_trainer(tmp_path), module, measure=True)
        assert density(module.network) == 1
    assert seen == pytest.approx([1, 0.2, 0.5], abs=0.05)  # the second 0.2 was kept


def test_the_way_of_training_runs_the_network_afterwards(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    cpu, training = torch.device("cpu"), {"engine": "auto"}
    assert chosen_engine(training, tmp_path, cpu) == "auto"
    choose_engine(quiet_trainer(tmp_path), make_module(), measure=True)
    assert chosen_engine(training, tmp_path, cpu) == "fused"
    assert chosen_engine(training, tmp_path, torch.device("meta")) == "auto"  # found on another device
    assert (
        chosen_engine({"engine": "sparse"}, tmp_path, cpu) == "sparse" and chosen_engine({}, tmp_path, cpu) == "dense"
    )
    (tmp_path / "probe.json").write_text("{")
    assert chosen_engine(training, tmp_path, cpu) == "auto"


@pytest.mark.parametrize(
    "override", ["training.engine=dense", "training.engine=fused", "training.compile=true",
                 "training.checkpoint_activations=true", "network=swin_unetr"],
)  # fmt: skip
def test_nothing_is_tried_for_other_settings(override: str, trials: list[dict[str, Any]], tmp_path: Path) -> None:
    module = make_module(*([override] if override != "network=swin_unetr" else []))
    if override == "network=swin_unetr":
        module.network = torch.nn.Conv3d(2, 2, 1)
    choose_engine(quiet_trainer(tmp_path), module, measure=True)
    assert trials == [] and module.way is None and not (tmp_path / "probe.json").exists()


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_cpu_tries_ways_with_amx_in_bfloat16_alone(
    amx: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (engine_choice, e2enet, select):
        monkeypatch.setattr(place, "half_precision_pays_on_cpu", lambda: amx)
    module = make_module()
    choose_engine(quiet_trainer(tmp_path, precision=precision), module, measure=True)
    if not amx or precision == "32":
        assert module.way is None and not (tmp_path / "probe.json").exists()
        return
    kept = json.loads((tmp_path / "probe.json").read_text())["engine"]
    assert "threads" in kept["device"] and list(kept["trials"]) == list(CPU_WAYS) == ["dense", "fused", "sparse"]
    assert all(trial["problem"] is None and trial["seconds"] > 0 for trial in kept["trials"].values())
    assert module.way == kept["way"] == min(kept["trials"], key=lambda way: kept["trials"][way]["seconds"])
    runs = {"dense": type(module.network), "fused": FusedNetwork, "sparse": TrainingEngine}
    for way, kind in runs.items():
        module.way = way
        assert isinstance(module.training_pass(module.network), kind)
    again = make_module()
    monkeypatch.setattr(engine_choice, "choose_way", lambda *_, **__: pytest.fail("tried again"))
    choose_engine(quiet_trainer(tmp_path, precision=precision), again, measure=True)
    assert again.way == kept["way"]


def test_without_a_probe_nothing_is_tried_but_a_resumed_run_goes_on(
    trials: list[dict[str, Any]], tmp_path: Path
) -> None:
    module = make_module()
    choose_engine(quiet_trainer(tmp_path), module, measure=False)
    assert trials == [] and module.way is None and not (tmp_path / "probe.json").exists()
    choose_engine(quiet_trainer(tmp_path), make_module(), measure=True)
    choose_engine(quiet_trainer(tmp_path), module, measure=False)
    assert module.way == "fused" and len(trials) == 1


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_fused_training_is_that_of_the_network(growth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masked, _ = fit(tmp_path, "training.engine=dense", growth=growth)
    passes: list[bool] = []
    run = FusedNetwork.forward

    def counted(self: FusedNetwork, x: torch.Tensor) -> Any:
        passes.append(self.network.training)
        return run(self, x)

    monkeypatch.setattr(FusedNetwork, "forward", counted)
    fused, _ = fit(tmp_path, "training.engine=fused", growth=growth)
    # Every step, those of growth by gradient included: it finds the gradients of inactive kernels too.
    assert passes.count(True) == 8 and passes.count(False) > 0
    found, expected = fused.state_dict(), masked.state_dict()
    for name in expected:
        if name.endswith("kernel_mask"):
            assert torch.equal(found[name], expected[name]), name
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert fused.scores == pytest.approx(masked.scores, abs=0.02)


def test_training_by_groups_is_that_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Groups(pl.Callback):
        def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
            module.way = "groups"

    shape: dict[str, Any] = {"growth": "gradient", "group_size": 4}
    masked, _ = fit(tmp_path, "training.engine=dense", "network.base_features=8", **shape)
    passes: list[bool] = []
    run = FusedNetwork.forward

    def counted(self: FusedNetwork, x: torch.Tensor) -> Any:
        passes.extend([self.groups] if self.network.training else [])
        return run(self, x)

    monkeypatch.setattr(FusedNetwork, "forward", counted)
    grouped, _ = fit(tmp_path, "training.engine=auto", "network.base_features=8", watched=[Groups()], **shape)
    # Before each of three growths by gradient, a step finds the gradients of inactive kernels, also fused.
    assert len(passes) == 8 and passes.count(False) == 3
    found, expected = grouped.state_dict(), masked.state_dict()
    for name in expected:
        if name.endswith("kernel_mask"):
            assert torch.equal(found[name], expected[name]), name
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
