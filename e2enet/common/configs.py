"""Where the project's Hydra configs are, and how to compose one outside of a Hydra app."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

ROOT_VARIABLE = "E2ENET_ROOT"
EXPERIMENTS = "experiments"
# Keys that name files or folders.
PATHS = ("paths.data", "paths.prepared", "paths.runs", "run_folder", "resume", "initial_weights", "data.split")


def project_root() -> Path:
    """Folder that holds conf/ and experiments/: the environment variable E2ENET_ROOT, else this checkout.

    The variable is set on the way, since the search path of conf/config.yaml is anchored on it.
    """
    root = os.environ.setdefault(ROOT_VARIABLE, str(Path(__file__).resolve().parents[2]))
    return Path(root)


def register_resolvers() -> None:
    """Make resolvers of the configs known to OmegaConf: `${run_dir:resume,run_folder}` (where a run is written) and
    `${expand_home:path}`, both with `~` as the home folder, and `${row_names:${ablation.rows}}` (their names, as a
    sweep's parameter)."""
    OmegaConf.register_new_resolver("expand_home", os.path.expanduser, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("row_names", ",".join, replace=True)


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The config that `python train.py OVERRIDES` would run with; `with_hydra` keeps Hydra's own section."""
    register_resolvers()
    folder = str(project_root() / "conf")
    with _outside_of_apps(), initialize_config_dir(version_base="1.3", config_dir=folder, job_name="train"):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def as_plain(section: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A config section as plain containers, which checkpoints and constructors take."""
    content = OmegaConf.to_container(section, resolve=resolve)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def make_paths_absolute(config: DictConfig) -> None:
    """Write out the files and folders of a composed config: `~` is the home folder, and what is relative lies in the
    working directory of today, wherever the run is gone on with."""
    for key in PATHS:
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        # A split is a rule's name, or a file, whose bare name is looked up beside the dataset.
        if isinstance(value, str) and (key != "data.split" or "/" in value):
            OmegaConf.update(config, key, os.path.abspath(os.path.expanduser(value)))


def group_options() -> dict[str, list[str]]:
    """Config groups and the names that each accepts."""
    root = project_root()
    folders = [*(folder for folder in (root / "conf").iterdir() if folder.is_dir()), root / EXPERIMENTS]
    folders = [folder for folder in folders if folder.name != "hydra"]  # choices of Hydra's own groups
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in sorted(folders)}


@contextmanager
def _outside_of_apps() -> Iterator[None]:
    """Set aside, for the block, the Hydra app that this process may be: Hydra composes for one at a time."""
    app = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = app


def resumed_folder(resume: str | Path) -> Path:
    """The run folder that `resume` names: itself, or that of a checkpoint in its folder `checkpoints`."""
    path = Path(resume)
    return path.parent.parent if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else path


def _run_dir(resume: str | None, run_folder: str) -> str:
    return os.path.expanduser(run_folder if resume is None else resumed_folder(resume))
