"""Going on with a run: its own config, and which keys may differ from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from e2enet.common.errors import InputError, raise_problems

CONFIG_FILE = "config.yaml"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
# What a resumed run may change: its length, what becomes of losses that are not finite, where it runs and logs, where
# files are, and what follows training.
CHANGEABLE = (
    "training.epochs",
    "training.skip_nonfinite",
    "trainer",
    "logger",
    "paths",
    "final",
    "data.num_workers",
    "data.prepare_workers",
)


def resumed_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config to go on with: the run's own, with changeable overrides of this command line.

    The run may have been stopped before its first checkpoint: it then begins anew, with the same config.

    Args:
        config: the composed config of this command line; its `resume` names the run folder.
        overrides: the command line's overrides, as typed.

    Raises:
        InputError: the folder holds no run, or overrides ask for something else than the run's config.
    """
    folder = Path(config.resume)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"resume={folder}: cannot be continued, {folder / CONFIG_FILE}: no such file")
    stored = OmegaConf.load(folder / CONFIG_FILE)
    if not isinstance(stored, DictConfig):
        raise InputError(f"{folder / CONFIG_FILE}: not a run's config")
    problems = []
    for text in overrides:
        key = OverridesParser.create().parse_override(text).key_or_group
        if key == "resume" or key.split(".")[0] == "hydra":
            continue
        wanted, had = _plain(OmegaConf.select(config, key)), _plain(OmegaConf.select(stored, key))
        if any(f"{key}.".startswith(f"{free}.") for free in CHANGEABLE):
            OmegaConf.update(stored, key, wanted, merge=False)
        elif wanted != had:
            problems.append(f"{key}={wanted}: the run has {had}")
    raise_problems(problems, f"resume={folder}: only {', '.join(CHANGEABLE)} may change:")
    stored.resume = str(folder)
    stored.run_folder = str(folder)
    return stored


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
