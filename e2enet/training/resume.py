"""Resuming a run: its stored config, the keys that may change, and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from e2enet.common.configs import as_plain, compose_config, group_options, make_paths_absolute, resumed_folder
from e2enet.common.console import say
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.overrides import chooses_group, override_values, parse_override
from e2enet.common.steps import with_order
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.earlier import is_of_earlier_version
from e2enet.inference.checkpoint import read_checkpoint
from e2enet.runs.folders import CONFIG_FILE, MANIFEST, read_config
from e2enet.runs.job_key import LOOKED_UP
from e2enet.system.ranks import planned_processes
from e2enet.training.resumed_job import refuse_another_job
from e2enet.training.run_state import RunState
from e2enet.training.stopping import is_restarted

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
PREVIOUS_CHECKPOINT = Path("checkpoints") / "previous.ckpt"
# What a resumed run may change: its length, how often it is saved, the handling of non-finite losses, how a step is
# computed, where it runs and logs, where files are, and the prediction after training.
CHANGEABLE = (
    "training.epochs",
    "training.checkpoint_every",
    "training.checkpoint_unit",
    "training.keep_every",
    "training.skip_nonfinite",
    "training.checkpoint_activations",
    "training.engine",
    "training.compile",
    "trainer",
    "logger",
    "callbacks",
    "paths",
    "final",
    "optimized_metric",
    "data.num_workers",
    "data.prepare_workers",
    "data.augment_on",
)
# Config sections that decide what is trained. `plan` is compared as computed from the data.
TRAINED = ("seed", "fold", "data", "augmentation", "dsff", "network", "training", "loss", "optimizer", "schedule")
# Items named in a message about a changed list.
MAX_NAMED = 3


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint to resume from, with the state of its run."""

    path: Path
    state: RunState


def resumed_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the run's stored config with those overrides of this command line that may change.

    If the run was stopped before its first checkpoint, it starts again with the same config.

    Args:
        config: the composed config of this command line; its `resume` is the run folder or one of its checkpoints.
        overrides: the command line's overrides, as typed.

    Raises:
        InputError: the folder holds no run, or an override contradicts the run's config.
    """
    config = config.copy()
    make_paths_absolute(config)
    path = Path(config.resume)
    folder = resumed_folder(path)
    if path.is_file() and not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"resume={path}: cannot be continued, it is a file that is no run's; expected the folder of a run, which "
            f"goes on from its {LAST_CHECKPOINT}, or a checkpoint in it"
        )
    if not (folder / CONFIG_FILE).is_file() and (folder / MANIFEST).is_file():
        raise InputError(f"resume={folder}: is the folder of a sweep, which goes on by its own command line")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"resume={folder}: cannot be continued, {folder / CONFIG_FILE}: no such file (a run writes it with its "
            "first step; before, its own command line starts it again)"
        )
    stored = OmegaConf.create(read_config(folder))
    lacking = [section for section in (*TRAINED, "trainer", "paths") if section not in stored]
    lacking += ["data.layout"] if is_of_earlier_version(as_plain(stored.get("data") or {}, resolve=False)) else []
    if lacking:
        raise InputError(
            f"{folder / CONFIG_FILE}: not a run's config, or that of an earlier version of e2enet, which alone goes on "
            f"with it (it lacks {', '.join(lacking)})"
        )
    before = stored.copy()
    problems = []
    for text in overrides:
        override = parse_override(text)
        if override.key_or_group == "resume" or override.key_or_group.split(".")[0] == "hydra":
            continue
        for key in _keys_of(override):
            wanted, had = _plain(OmegaConf.select(config, key)), _plain(OmegaConf.select(stored, key))
            if _may_change(key):
                OmegaConf.update(stored, key, wanted, merge=False)
            elif wanted != had and not _is_below(key, LOOKED_UP):
                given = f"{key}={wanted}" if key == override.key_or_group else f"{text}: {key} would be {wanted}"
                problems.append(f"{given}: the run has {had}")
    if _processes(stored) != (had := _processes(before)):
        problems.append(f"trainer.devices and num_nodes: {_processes(stored)} processes, the run has {had}")
    raise_problems(problems, f"resume={folder}: only {', '.join(CHANGEABLE)} may change, not the processes' number:")
    refuse_another_job(folder, as_plain(before), as_plain(stored))
    # A job restarted by a scheduler has already resumed from that checkpoint: it continues from its last one.
    chosen = path.is_file() and not (is_restarted() and stored.get("resume") == str(path))
    if chosen:
        read_state(path)
    stored.resume = str(path if chosen else folder)
    stored.run_folder = str(folder)
    return stored


def find_checkpoint(path: Path) -> FoundCheckpoint | None:
    """Return the checkpoint itself, or the newest intact one of a run folder; None if the folder has none.

    Print a warning if the newest intact one is not last.ckpt.

    Raises:
        InputError: there are checkpoints, but none can be used.
    """
    if path.is_file():
        return FoundCheckpoint(path, read_state(path))
    return _newest_checkpoint(path)


def _newest_checkpoint(run_folder: Path) -> FoundCheckpoint | None:
    problems = []
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = run_folder / name
        try:
            state = read_state(path)
        except FileNotFoundError:
            problems += [f"{path}: no such file"] if name == LAST_CHECKPOINT else []
        except InputError as error:
            problems.append(str(error))
        else:
            for problem in problems:
                say(f"warning: {problem}; going on from {path}, step {state.step}", style="yellow")
            return FoundCheckpoint(path, state)
    if any((run_folder / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
        kept = sorted((run_folder / LAST_CHECKPOINT).parent.glob("epoch_*.ckpt"))
        advice = f"or go on from one that was kept: resume={kept[-1]}" if kept else "without any, the run begins anew"
        raise_problems(problems, f"resume={run_folder}: no checkpoint can be used ({advice}):")
    return None


def refuse_shorter(checkpoint: FoundCheckpoint, epochs: int) -> None:
    """Refuse a training length that the run has already passed.

    The last epoch of a run is always validated. A run shortened to epochs that it has finished would lack that
    validation.

    Raises:
        InputError: the run is past these epochs, or has finished the last of them within a longer training.
    """
    content = read_checkpoint(checkpoint.path, mmap=True)
    done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    length = content["hyper_parameters"]["training"]["epochs"]
    least = done if done == length else done + 1
    if epochs < least:
        begun = "is finished" if done == length else "goes on from there"
        raise InputError(
            f"training.epochs={epochs}: {checkpoint.path} has {done} epochs of {length} behind it and {begun}; "
            f"expected {least} or more"
        )


def run_identity(config: Mapping[str, Any], data: SegmentationDataModule) -> dict[str, Any]:
    """Return dotted key -> value of everything that may not change in a resumed run: all that decides its steps.

    Args:
        config: the run's resolved config.
        data: the data module, after its setup.
    """
    content = with_order(config)
    found = dict(_flat({section: content[section] for section in TRAINED}))
    found |= dict(_flat({"plan": data.plan.to_dict()}))
    found |= {
        **data.dataset.scheme.to_plain(),
        "training cases": [case.id for case in data.train_cases],
        "validation cases": [case.id for case in data.val_cases],
        "processes": planned_processes(config["trainer"]),
    }
    return _decisive(found)


def refuse_changes(checkpoint: FoundCheckpoint, identity: Mapping[str, Any]) -> None:
    """Compare a run with its checkpoint: config.yaml, plan.json or the dataset may have changed since.

    Raises:
        InputError: lists every difference.
    """
    had = _decisive(checkpoint.state.identity)
    problems = [
        f"{key}: the run has {_told(had, key, identity)}, now {_told(identity, key, had)}"
        for key in dict.fromkeys([*had, *identity])
        if had.get(key) != identity.get(key) or (key in had) != (key in identity)
    ]
    raise_problems(problems, f"{checkpoint.path}: its run cannot go on with what has changed since:")


def read_state(path: Path) -> RunState:
    """Read the state of a run from its checkpoint.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is damaged, or not a checkpoint of a run.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes checksums but does not verify them
    except BadZipFile as error:
        raise InputError(f"{path}: is damaged or cut off ({error})") from error
    if damaged is not None:
        raise InputError(f"{path}: is damaged ({damaged} is not what was written)")
    content = read_checkpoint(path, mmap=True)
    try:
        return RunState.read_from(content)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is no checkpoint that a run of this version can go on from") from error


def _keys_of(override: Override) -> list[str]:
    """Return the keys that an override sets.

    The choice of a group (`debug=one_batch`, `training=paper`) sets all keys in which its file differs from the
    group's other files.
    """
    name = override.key_or_group
    if not chooses_group(override):
        return [name]

    def content(*choices: str) -> dict[str, Any]:
        return dict(_flat(as_plain(compose_config(choices), resolve=False)))

    chosen, plain = content(f"{name}={override_values(override)[0]}"), content()
    others = [plain] if chosen != plain else [content(f"{name}={option}") for option in group_options(name)]
    return [
        key
        for key in dict.fromkeys([*chosen, *(key for other in others for key in other)])
        if any(chosen.get(key) != other.get(key) for other in others)
    ]


def _decisive(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keep only the values that may not change: earlier versions may have stored others too."""
    return {key: value for key, value in content.items() if not (_may_change(key) or _is_below(key, LOOKED_UP))}


def _may_change(key: str) -> bool:
    return _is_below(key, CHANGEABLE)


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _processes(config: DictConfig) -> int:
    """Return the number of training processes, which decides each step's batch size and patches."""
    return planned_processes(as_plain(config.trainer))


def _told(content: Mapping[str, Any], key: str, other: Mapping[str, Any]) -> str:
    """Format a value for a message; for a long list, its length and the items that the other one lacks."""
    value, beside = content.get(key), other.get(key)
    if not isinstance(value, list) or not isinstance(beside, list) or len(value) <= MAX_NAMED:
        return str(value) if key in content else "none"
    own = [str(item) for item in value if item not in beside]
    named = ", ".join(own[:MAX_NAMED]) + (", .." if len(own) > MAX_NAMED else "")
    return f"{len(value)}" + (f" ({named})" if own else "")


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
