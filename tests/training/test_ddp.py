"""Data-parallel training on two processes against one process with twice the batch, on the same samples.

This file is also the program of the two processes. torchrun runs it once for all tests.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from e2enet.common.configs import compose_config
from e2enet.network import DSFF, dsff
from e2enet.network.half_precision import half_precision_pays_on_cpu
from e2enet.network.mask_agreement import mask_digest
from e2enet.system.ranks import current_team, is_rank_zero, launched
from e2enet.training.checkpoints import BestCheckpoint
from e2enet.training.loggers import MetricsFile
from e2enet.training.parts import read_parts
from e2enet.training.run import build_module
from e2enet.training.run_folder import Claim
from e2enet.training.trainer import KEEP_BUFFERS, build_trainer
from tests.training.conftest import TinySparse

Record = dict[str, Any]
TINY = [
    "data.num_train=5",
    "data.num_test=0",
    "data.shape=[32,32,12]",
    "data.num_workers=0",
    "plan.patch_size=[4,8,8]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "network.base_features=4",
    "training.epochs=1",
    "training.validation_patches=6",
    "training.validate_full=0",
    "training.clip_norm=0.5",
    "dsff.density=0.5",
    "trainer.accelerator=cpu",
]
# 10 optimizer steps of two batches each, with a mask update after every second step.
LONG = ["training.steps_per_epoch=20", "training.accumulate=2", "dsff.update_every=2"]
SGD = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.01"]  # small differences stay small
WIDER = "network.base_features=12"  # two and three groups of 8 output channels
# Nothing is learnt, so that scores come from identical weights.
SCORED = ["training.steps_per_epoch=2", "training.validate_full=1", "optimizer.lr=0.0", "dsff=static"]
SCORED += ["plan.patch_size=[12,32,32]"]  # a whole case takes a few windows
SCENARIOS: dict[str, tuple[list[str], Any]] = {
    "random": ([*LONG, "dsff.growth=random"], "64-true"),
    "gradient": ([*LONG, "dsff.growth=gradient"], "64-true"),
    "group": ([*LONG, "dsff.growth=gradient", "dsff.granularity=group", "dsff.group_size=8", WIDER], "64-true"),
    "sparse": ([*LONG, "dsff.growth=gradient", "training.engine=sparse", *SGD], "32"),
    "amp": (["training.steps_per_epoch=6", "dsff.update_every=2"], "bf16-mixed"),
    "five_cases": ([*SCORED, "fold=all"], "32"),
    "one_case": (SCORED, "32"),
    "spoilt": (["training.steps_per_epoch=6", "dsff.update_every=4"], "32"),
}


class Watch(pl.Callback):
    """Record the training and validation cases of a process, and its masks after every batch."""

    def __init__(self) -> None:
        self.seen: Record = {"train": [], "loss": [], "masks": [], "validated": []}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pairs = zip(batch["case"], batch["image"].double().sum((1, 2, 3, 4)).tolist(), strict=True)
        self.seen["train"].append(list(pairs))
        self.seen["loss"].append(float(outputs["loss"]))
        layers = dsff.fusion_layers(pl_module).items()
        self.seen["masks"].append({name: mask_digest(layer.kernel_mask) for name, layer in layers})

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.seen["validated"] += batch["case"]


class Spoil(pl.Callback):
    """Flip one layer's mask along dim 0 on the second process, as faulty hardware might."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            layer = dsff.fusion_layers(pl_module)["network.decoder.columns.0.1.up"]
            layer.kernel_mask.copy_(layer.kernel_mask.flip(0))


def train(name: str, root: Path, batch_size: int) -> Record:
    """Fit one scenario in this process, alone or as one of several; return its record, weights and scores."""
    overrides, precision = SCENARIOS[name]
    folders = [f"paths.data={root}/data", f"paths.prepared={root}/prepared", f"run_folder={root}/{name}"]
    processes = [f"trainer.devices={launched().world_size}", f"plan.batch_size={batch_size}"]
    config = compose_config([*TINY, *overrides, *processes, *folders])
    config.training.precision = precision
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = read_parts(config)
    data = parts.data
    data.prepare_data()
    data.setup("fit")
    module = build_module(parts)
    folder = root / name / str(launched().world_size)
    trainer = build_trainer(parts, module, folder, [MetricsFile(folder)], {}, Claim(lambda: None, 0))
    watch = Watch()
    trainer.callbacks += [watch, Spoil()] if name == "spoilt" else [watch]
    trainer.fit(module, datamodule=data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return watch.seen | {"weights": module.state_dict(), "scores": module.scores, "metrics": metrics}


def train_without_lightning(rank: int | None, bucket_view: bool = False) -> Record:
    """Run a plain loop of eight steps; every second step updates the masks with gradient growth.

    A step has two backward passes, and the last one exchanges gradients. With `rank` None one process takes the
    samples of both.
    """

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    model = TinySparse(sgd).double()
    optimizer = sgd(model.parameters())
    options: Any = {"update_every": 2, "fraction_schedule": "constant", "growth": "gradient"}
    masks = DSFF(0.5, **options).attach(model, optimizer, total_steps=8)
    model.forward = lambda image: model.training_step([image], 0)  # type: ignore[method-assign,assignment]
    network, first_pass = model, nullcontext
    if rank is not None:
        network = DistributedDataParallel(model, **KEEP_BUFFERS, gradient_as_bucket_view=bucket_view)
        first_pass = network.no_sync
    record: Record = {"masks": [], "norms": []}
    images = torch.randn(8, 2, 2, 4, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for first, second in images if rank is None else images[:, :, rank : rank + 1]:
        with first_pass():
            network(first).backward()
        network(second).backward()
        layers = dsff.fusion_layers(model).values()
        assert not any(layer.weight.grad[~layer.kernel_mask].any() for layer in layers)
        record["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
        record["masks"].append([mask_digest(layer.kernel_mask) for layer in layers])
    assert masks.num_updates == 3
    return record | {"weights": model.state_dict()}


def main(root: Path) -> None:
    """Run one of the two processes: all scenarios in order. The scenario that stops with an error is last."""
    torch.set_num_threads(1)
    records: Record = {}
    for name in SCENARIOS:
        try:
            records[name] = train(name, root, batch_size=1)
        except RuntimeError as error:
            records[name] = str(error)
    team = current_team()
    # The second process already sees a result that the first did not see. The list of the first one counts.
    part = team.scatter(["a", "b", "c"] if is_rank_zero() else ["b", "c"])
    records["plain"] = [train_without_lightning(launched().rank, bucket_view) for bucket_view in (False, True)]
    records["team"] = {"part": part, "gathered": team.gather({"rank": team.rank})}
    records["best"] = [remembered_score(root, holder) for holder in (0, 1)]
    torch.save(records, root / f"rank{launched().rank}.pt")


def remembered_score(root: Path, holder: int) -> float:
    """Return the best score after resuming if only process `holder` sees best.ckpt, as on a disk that is not shared."""
    best = BestCheckpoint(root / ("team.ckpt" if launched().rank == holder else "nowhere.ckpt"), "val/dice")
    if launched().rank == holder:
        best.path.touch()
    best.score = 0.5
    best.on_train_start(cast(Any, SimpleNamespace(strategy=DDPStrategy())), cast(Any, None))
    return best.score


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def ranks(root: Path, launch: Callable[..., Any]) -> list[Record]:
    """The records of the two processes."""
    result = launch("torchrun", "tests/training/test_ddp.py", str(root))
    assert result.returncode == 0, result.stderr
    return [torch.load(root / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def amp_alone(root: Path) -> Record:
    return train("amp", root, batch_size=2)


@pytest.mark.parametrize("name", ["random", "gradient", "group"])
def test_two_processes_train_what_one_does_with_twice_the_batch(name: str, ranks: list[Record], root: Path) -> None:
    alone = train(name, root, batch_size=2)
    both = [record[name] for record in ranks]
    for layer, value in alone["weights"].items():
        for record in both:
            torch.testing.assert_close(record["weights"][layer], value, rtol=0, atol=1e-7)
    losses = [sum(pair) / 2 for pair in zip(both[0]["loss"], both[1]["loss"], strict=True)]
    assert losses == pytest.approx(alone["loss"], rel=1e-9)
    assert both[0]["metrics"]["train/loss"] == pytest.approx(alone["metrics"]["train/loss"], rel=1e-6)
    assert both[0]["masks"] == both[1]["masks"] == alone["masks"]
    # Four updates in 10 steps: the last step has none.
    assert len({tuple(masks.values()) for masks in alone["masks"]}) == 5


def test_two_processes_train_with_active_kernels_only(ranks: list[Record], root: Path) -> None:
    alone, both = train("sparse", root, batch_size=2), [record["sparse"] for record in ranks]
    for layer, value in alone["weights"].items():
        assert torch.equal(both[0]["weights"][layer], both[1]["weights"][layer]), layer
        torch.testing.assert_close(both[0]["weights"][layer], value, rtol=0, atol=1e-5)
    assert both[0]["masks"] == both[1]["masks"] == alone["masks"]


def test_a_plain_loop_of_two_processes_grows_by_the_gradient_of_both(ranks: list[Record]) -> None:
    expected = train_without_lightning(None)
    assert len({str(masks) for masks in expected["masks"]}) == 4
    for found in (record for rank in ranks for record in rank["plain"]):
        assert found["masks"] == expected["masks"]
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-9)
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-9)


def test_samples_are_disjoint_equally_many_and_those_of_one_process(ranks: list[Record], amp_alone: Record) -> None:
    both = [record["amp"]["train"] for record in ranks]
    assert [len(batch) for record in both for batch in record] == [1] * 12
    shared = [[*first, *second] for first, second in zip(*both, strict=True)]
    for batch, expected in zip(shared, amp_alone["train"], strict=True):
        assert [case for case, _ in batch] == [case for case, _ in expected]
        assert [total for _, total in batch] == pytest.approx([total for _, total in expected], rel=1e-9)
    assert len({total for batch in shared for _, total in batch}) == 12  # no patch twice


def test_mixed_precision_keeps_masks_equal_and_the_loss_near(ranks: list[Record], amp_alone: Record) -> None:
    both = [record["amp"] for record in ranks]
    assert both[0]["masks"] == both[1]["masks"]
    same = 1 if half_precision_pays_on_cpu() else None  # a machine that computes in bfloat16 rounds their gradients
    assert both[0]["masks"][:same] == amp_alone["masks"][:same]
    assert len({tuple(masks.values()) for masks in amp_alone["masks"]}) == 3
    assert both[0]["metrics"]["train/loss"] == pytest.approx(amp_alone["metrics"]["train/loss"], rel=0.01)


@pytest.mark.parametrize(("name", "cases"), [("five_cases", [3, 2]), ("one_case", [1, 0])])
def test_each_case_is_validated_once_and_scored_as_by_one_process(
    name: str, cases: list[int], ranks: list[Record], root: Path
) -> None:
    alone = train(name, root, batch_size=2)
    both = [record[name] for record in ranks]
    assert all(torch.equal(both[0]["weights"][layer], value) for layer, value in alone["weights"].items())
    # Three patches per process, then whole cases.
    assert [len(record["validated"]) for record in both] == [3 + number for number in cases]
    whole = [case for record in both for case in record["validated"][3:]]
    assert sorted(whole) == sorted(alone["validated"][6:]) and len(set(whole)) == len(whole) == sum(cases)
    assert both[0]["scores"] == both[1]["scores"] == alone["scores"]
    assert set(alone["scores"]) == {"val/dice", "val_full/dice"}
    scored = {key: value for key, value in alone["metrics"].items() if key.startswith("val")}
    assert {key: both[0]["metrics"][key] for key in scored} == scored


def test_masks_that_differ_stop_training_with_the_layers_name(ranks: list[Record]) -> None:
    for record in ranks:
        assert "not the same on all processes after update 1 at step 4" in record["spoilt"]
        assert "network.decoder.columns.0.1.up on rank 1" in record["spoilt"] and record["spoilt"].count("rank 1") == 1


def test_only_the_first_process_writes(ranks: list[Record], root: Path) -> None:
    written = {path.name for path in (root / "five_cases" / "2").rglob("*") if path.is_file()}
    pictures = {name for name in written if name.endswith(".png")}
    assert written - pictures == {"cost.json", "metrics.csv", "best.ckpt", "last.ckpt"} and len(pictures) == 1


def test_all_processes_remember_the_best_score_or_none_does(ranks: list[Record]) -> None:
    assert [record["best"] for record in ranks] == [[0.5, -math.inf]] * 2  # as the first process sees it


def test_a_team_shares_items_and_gathers_results(ranks: list[Record]) -> None:
    assert [record["team"]["part"] for record in ranks] == [["a", "c"], ["b"]]
    assert [record["team"]["gathered"] for record in ranks] == [[{"rank": 0}, {"rank": 1}]] * 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
