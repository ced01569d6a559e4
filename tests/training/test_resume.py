"""Which checkpoint a run resumes from, and which settings must not change."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line
from e2enet.data.command import build_datamodule
from e2enet.runs.folders import job_state, read_config
from e2enet.training.checkpoints import AtomicCheckpointIO
from e2enet.training.records import write_config
from e2enet.training.resume import FoundCheckpoint, find_checkpoint, refuse_changes, resumed_config, run_identity
from e2enet.training.run import run_training
from e2enet.training.run_state import KEY, RunState, generator_states, set_generator_states
from tests.training.conftest import SMALL_RUN


def write(folder: Path, *steps: int) -> None:
    """Write last.ckpt after each of these numbers of steps."""
    for step in steps:
        state = {"step": step, "rows": 2 * step, "generators": {}, "identity": {}}
        content = {KEY: state, "state_dict": {"weight": torch.arange(5000.0) + step}}
        AtomicCheckpointIO().save_checkpoint(content, folder / "checkpoints" / "last.ckpt")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in a weight, so that torch still reads the file
    path.write_bytes(content)
    torch.load(path, weights_only=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickle_something(path: Path) -> None:
    torch.save({KEY: Path("an object")}, path)


def write_weights_only(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def test_the_last_two_are_kept_and_the_last_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_checkpoint(tmp_path) is None
    write(tmp_path, 2, 4, 6)
    found = find_checkpoint(tmp_path)
    assert found == FoundCheckpoint(tmp_path / "checkpoints" / "last.ckpt", RunState(6, 12, {}, {}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "previous.ckpt", weights_only=True)[KEY]["step"] == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "is damaged or cut off (File is not a zip file)"),
        (empty, "is damaged or cut off (File is not a zip file)"),
        (flip_a_bit, "is damaged (archive/data/0 is not what was written)"),
        (pickle_something, "holds pickled objects, which could run code when loaded and are refused"),
        (write_weights_only, "is no checkpoint that a run of this version can go on from"),
        (Path.unlink, "no such file"),
    ],
)
def test_the_one_before_stands_in_for_a_damaged_one(
    damage: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 2, 4)
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    damage(last)
    found = find_checkpoint(tmp_path)
    assert found is not None and (found.path, found.state.step) == (previous, 2)
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"warning: {last}: ") and reason in warning
    assert warning.endswith(f"; going on from {previous}, step 2")


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    write(tmp_path, 2, 4)
    for name in ("last.ckpt", "previous.ckpt"):
        truncate(tmp_path / "checkpoints" / name)
    with pytest.raises(InputError) as caught:
        find_checkpoint(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"resume={tmp_path}: no checkpoint can be used (without any, the run begins anew):"
    kept = tmp_path / "checkpoints" / "epoch_0010.ckpt"
    kept.touch()
    with pytest.raises(InputError, match=re.escape(f"(or go on from one that was kept: resume={kept}):")):
        find_checkpoint(tmp_path)
    assert [name in line for name, line in zip(("last.ckpt", "previous.ckpt"), lines[1:], strict=True)] == [True] * 2


def test_only_runs_are_continued(tmp_path: Path, stored: DictConfig) -> None:
    write(tmp_path, 2)
    compact = tmp_path / "checkpoints" / "compact.ckpt"
    torch.save({"hyper_parameters": {}, "state_dict": {}}, compact)
    given = f"resume={compact}"
    expected = r"it is a file that is no run's; expected the folder of a run, .*last\.ckpt, or a checkpoint in it"
    with pytest.raises(InputError, match=expected) as told:
        check_command_line([given])  # before Hydra creates a folder of this name
    assert given in str(told.value)
    write_config(tmp_path / "config.yaml", stored)
    with pytest.raises(InputError, match=r"compact\.ckpt: is no checkpoint that a run of this version can go on from"):
        check_command_line([given])
    # It is refused in the place of last.ckpt, too.
    compact.replace(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt: is no checkpoint that a run of this version can go on from"):
        find_checkpoint(tmp_path)


def test_a_job_that_is_started_again_goes_on_from_where_it_came_to(
    tmp_path: Path, stored: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 2, 4)
    write_config(tmp_path / "config.yaml", stored)
    chosen = tmp_path / "checkpoints" / "previous.ckpt"

    def resumed() -> DictConfig:
        given = [f"resume={chosen}"]
        config = compose_config(given, with_hydra=True)
        assert config.hydra.run.dir == str(tmp_path)
        return resumed_config(config, given)

    config = resumed()
    assert config.resume == str(chosen) and config.run_folder == str(tmp_path)
    found = find_checkpoint(Path(config.resume))
    assert found is not None and (found.path, found.state.step) == (chosen, 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resumed().resume == str(chosen)  # stopped before its first step
    write_config(tmp_path / "config.yaml", config)  # now it has begun
    assert resumed().resume == str(tmp_path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    root = tmp_path_factory.mktemp("resume")
    paths = [f"paths.data={root}/data", f"paths.prepared={root}/prepared"]
    return compose_config([*SMALL_RUN, *paths, "data.num_test=0", "plan.spacing=[3,1,1]"])


def identity_of(config: DictConfig) -> dict[str, Any]:
    data = build_datamodule(config, steps_per_epoch=1)
    data.prepare_data()
    data.setup("fit")
    return run_identity(as_plain(config), data)


def test_what_has_changed_since_is_refused_with_all_differences(stored: DictConfig, tmp_path: Path) -> None:
    identity = identity_of(stored)
    checkpoint = FoundCheckpoint(tmp_path / "last.ckpt", RunState(4, 8, {}, identity))
    free = stored.copy()
    free.training.epochs, free.data.num_workers, free.trainer.log_every_n_steps, free.final.predict = 99, 3, 1, True
    free.training.checkpoint_every, free.training.checkpoint_activations = 7, True
    refuse_changes(checkpoint, identity_of(free))
    changed = stored.copy()
    changed.dsff.density, changed.network.base_features, changed.loss.smooth = 0.3, 8, 1e-3
    changed.plan.patch_size, changed.data.num_train, changed.trainer.devices = [8, 16, 24], 6, 2
    del changed.optimizer.weight_decay
    with pytest.raises(InputError) as caught:
        refuse_changes(checkpoint, identity_of(changed))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/last.ckpt: its run cannot go on with what has changed since:",
        "  - data.layout.num_train: the run has 5, now 6",
        "  - data.num_train: the run has 5, now 6",
        "  - dsff.density: the run has 0.2, now 0.3",
        "  - network.base_features: the run has 4, now 8",
        "  - loss.smooth: the run has 1e-05, now 0.001",
        "  - optimizer.weight_decay: the run has 0.01, now none",
        "  - plan.patch_size: the run has [8, 16, 16], now [8, 16, 24]",
        "  - training cases: the run has 4 (phantom_004), now 4 (phantom_001)",
        "  - validation cases: the run has ['phantom_001'], now ['phantom_004', 'phantom_006']",
        "  - processes: the run has 1, now 2",
    ]


def test_the_number_of_processes_stays_however_they_are_spread(stored: DictConfig, tmp_path: Path) -> None:
    stored = stored.copy()
    stored.trainer.devices = 2
    write_config(tmp_path / "config.yaml", stored)
    spread = [f"resume={tmp_path}", "trainer.devices=1", "trainer.num_nodes=2", "training.checkpoint_every=9"]
    config = resumed_config(compose_config(spread), spread)
    assert (config.trainer.devices, config.trainer.num_nodes, config.training.checkpoint_every) == (1, 2, 9)
    with pytest.raises(InputError, match=r"trainer.devices and num_nodes: 1 processes, the run has 2"):
        resumed_config(compose_config(spread[:2]), spread[:2])


def test_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        normal = np.random.normal()  # NumPy draws two and keeps the second
        return [torch.rand(()).item(), normal, random.gauss(0, 1), random.random()]

    kept = generator_states()
    try:
        draw()
        states = generator_states()
        expected = draw()
        assert draw() != expected
        set_generator_states(states)
        assert draw() == expected
    finally:
        set_generator_states(kept)


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ("debug=one_batch", "debug=one_batch: training.steps_per_epoch would be"),
        ("experiments=sparsity", "experiments=sparsity: ablation.title would be"),
        (
            "training=paper",
            "training=paper: optimizer._target_ would be torch.optim.SGD: the run has torch.optim.AdamW",
        ),
        ("training=small", "training=small: plan.batch_size would be 4: the run has 2"),
        ("dsff=rigl", "dsff=rigl: dsff.growth would be gradient: the run has random"),
        ("data=btcv", "data=btcv: data.name would be"),
    ],
)
def test_a_choice_that_would_change_the_run_is_refused(
    choice: str, problem: str, stored: DictConfig, tmp_path: Path
) -> None:
    write_config(tmp_path / "config.yaml", stored)
    given = [f"resume={tmp_path}", choice]
    with pytest.raises(InputError) as caught:
        resumed_config(compose_config(given), given)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            b"",
            r"not a run's config, or .* \(it lacks seed, fold, data, augmentation, dsff, network, .*paths\)",
        ),
        (b"seed: 1\ntrainer: {", "cannot be read as a run's config"),
        (b"\xff\xfe\x00", "cannot be read as a run's config"),
        (b"- 1", "not a run's config"),
    ],
)
def test_a_damaged_config_is_told(damage: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(damage)
    given = [f"resume={tmp_path}"]
    with pytest.raises(InputError, match=f"{tmp_path}/config.yaml: {problem}"):
        resumed_config(compose_config(given), given)


def test_a_choice_that_changes_what_may_change_is_taken(stored: DictConfig, tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", stored)
    given = [f"resume={tmp_path}", "dsff=dsff", "trainer=auto", "logger=wandb", "data.augment_on=device"]
    config = resumed_config(compose_config(given), given)
    assert config.logger.wandb.offline is True and config.data.augment_on == "device"
    assert config.network == stored.network and config.training == stored.training


def test_a_wrong_score_for_a_search_ends_the_run_at_once_and_may_be_corrected(
    stored: DictConfig, tmp_path: Path
) -> None:
    config = stored.copy()
    config.training.epochs, config.training.steps_per_epoch, config.training.validate_full = 5, 1, 2
    config.training.checkpoint_every = 1
    config.optimized_metric, config.run_folder = "val_full/dicee", str(tmp_path)
    expected = r"optimized_metric=val_full/dicee: is not measured; expected val_full/dice \| val_full/dice_cone_down"
    with pytest.raises(InputError, match=expected):
        run_training(config, tmp_path)
    found = find_checkpoint(tmp_path)
    assert found is not None and found.state.step == 2  # the first epoch that validates whole cases
    given = [f"resume={tmp_path}", "optimized_metric=val_full/dice", "training.epochs=3"]
    assert run_training(resumed_config(compose_config(given), given), tmp_path).folder == tmp_path


def test_a_finished_run_that_predicts_again_is_unfinished_until_then(
    stored: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config is that of the new prediction from the start, so the old scores must be gone by then."""
    first = stored.copy()
    first.training.epochs = first.training.steps_per_epoch = first.final.max_cases = 1
    first.final.predict, first.final.mirror, first.run_folder = True, False, str(tmp_path)
    run_training(first, tmp_path)
    assert job_state(tmp_path).state == "finished"
    given = [f"resume={tmp_path}", "final.mirror=true"]

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("e2enet.training.final.predict_cases", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_training(resumed_config(compose_config(given), given), tmp_path)
    assert read_config(tmp_path)["final"]["mirror"] is True
    assert job_state(tmp_path).state == "interrupted" and not (tmp_path / "scores.csv").exists()
    run_training(resumed_config(compose_config(given[:1]), given[:1]), tmp_path)
    assert job_state(tmp_path).state == "finished" and (tmp_path / "scores.csv").is_file()
