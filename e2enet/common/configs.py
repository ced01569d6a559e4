"""Where the project's Hydra configs are, and how to compose one outside of a Hydra app."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

ROOT_VARIABLE = "E2ENET_ROOT"
EXPERIMENTS = "experiments"


def project_root() -> Path:
    """Folder that holds conf/ and experiments/: the environment variable E2ENET_ROOT, else this checkout.

    The variable is set on the way, since the search path of conf/config.yaml is anchored on it.
    """
    root = os.environ.setdefault(ROOT_VARIABLE, str(Path(__file__).resolve().parents[2]))
    return Path(root)


def register_resolvers() -> None:
    """Make `${first_set:a,b}` (the first value that is not null) known to OmegaConf."""
    OmegaConf.register_new_resolver("first_set", _first_set, replace=True)


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The config that `python train.py OVERRIDES` would run with; `with_hydra` keeps Hydra's own section."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(project_root() / "conf")):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def as_plain(section: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A config section as plain containers, which checkpoints and constructors take."""
    content = OmegaConf.to_container(section, resolve=resolve)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def group_options() -> dict[str, list[str]]:
    """Config groups and the names that each accepts."""
    root = project_root()
    folders = [*(folder for folder in (root / "conf").iterdir() if folder.is_dir()), root / EXPERIMENTS]
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in sorted(folders)}


def _first_set(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
