"""Where configs are looked for, and how one is composed outside of a Hydra app.

The project's own are conf/, with the primary config, and the group experiments/ beside it. A user's own come before and
beside them, as in any Hydra app: `--config-dir`, `--config-name`, `--config-path`, `hydra.searchpath`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from e2enet.common.whole_mappings import replacing

EXPERIMENTS = "experiments"
PACKAGE = Path(__file__).resolve().parents[1]
# The folder of conf/ and experiments/: the package where it is installed, the project's root in a checkout.
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONFIGS = ROOT / "conf"
# Keys that name files or folders.
PATHS = ("paths.data", "paths.prepared", "paths.runs", "run_folder", "resume", "initial_weights", "data.split")
SEARCHPATH = "hydra.searchpath="
SOURCE_VARIABLE = "E2ENET_CONFIG_SOURCE"


@dataclass(frozen=True)
class ConfigSource:
    """Where this process looks for configs.

    Attributes:
        name: Of the primary config.
        primary: The folder that it lies in.
        added: A user's folder, which is searched before the project's own (`--config-dir`).
        searchpath: The override `hydra.searchpath=[..]` as typed, "" without one.
    """

    name: str = "config"
    primary: Path = CONFIGS
    added: Path | None = None
    searchpath: str = ""


def choose_source(source: ConfigSource) -> None:
    """Compose from there from now on, in processes that this one starts too, as the workers of launchers."""
    global _source
    _source = source
    os.environ[SOURCE_VARIABLE] = json.dumps(asdict(source), default=str)


def _inherited_source() -> ConfigSource:
    content = json.loads(os.environ.get(SOURCE_VARIABLE, "{}"))
    folders = {name: Path(content[name]) for name in ("primary", "added") if content.get(name)}
    return ConfigSource(**(content | folders))


_source = _inherited_source()


class ExperimentsSource(FileConfigSource):
    """The group `experiments`, whose folder lies in the project's root, and nothing else of that root.

    With all of it, `--help` would look for groups in every folder of data and of runs.
    """

    @staticmethod
    def scheme() -> str:
        """How search paths name such a source."""
        return EXPERIMENTS

    def is_group(self, config_path: str) -> bool:
        """Whether it is the root, or a folder of the group."""
        return _is_experiments(config_path) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file of the group."""
        return _is_experiments(config_path) and super().is_config(config_path)


class ProjectSearchPath(SearchPathPlugin):
    """Puts the project's own configs behind a user's, and `ConfigSource.added` before them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """`experiments` is a group too."""
        if _source.added is not None:
            schema = SearchPathQuery(provider="schema")
            search_path.prepend(provider="command-line", path=f"file://{_source.added}", anchor=schema)
        for place in (f"file://{CONFIGS}", f"{ExperimentsSource.scheme()}://{ROOT}"):
            search_path.append(provider="e2enet", path=place)


def register_configs() -> None:
    """Make the project's configs known to Hydra, and their resolvers to OmegaConf.

    These are `${run_dir:resume,run_folder}` (where a run is written) and `${expand_home:path}`, both with `~` as the
    home folder, `${row_names:${ablation.rows}}` (their names, as a sweep's parameter), and `${given_or:value,other}`
    (the other where the value is null). `${configs_folder:}` is the folder of the project's own.
    """
    if ProjectSearchPath not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(ExperimentsSource)
        Plugins.instance().register(ProjectSearchPath)
    OmegaConf.register_new_resolver("expand_home", os.path.expanduser, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("configs_folder", lambda: str(CONFIGS), replace=True)
    OmegaConf.register_new_resolver("row_names", ",".join, replace=True)
    OmegaConf.register_new_resolver("given_or", lambda value, other: other if value is None else value, replace=True)


def explained_keys(name: str) -> str:
    """The keys of a primary config as its file explains them, for a command's help: without `defaults` and `hydra`."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    without_comments_above = re.sub(r"\A(?:#.*\n)+", "", text)
    return re.sub(r"^(?:defaults|hydra):.*\n(?: .*\n)*", "", without_comments_above, flags=re.MULTILINE).strip()


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The config that `e2enet train OVERRIDES` would run with; `with_hydra` keeps Hydra's own section."""
    places = [_source.searchpath] if _source.searchpath and _source.searchpath not in overrides else []
    with _initialized(_source):
        return compose(_source.name, overrides=[*places, *replacing(overrides)], return_hydra_config=with_hydra)


def group_options(group: str) -> tuple[str, ...]:
    """The names that a config group accepts, () where there is no such group; `_name` is for others to build on."""
    return _group_options(group, _source)


def as_plain(section: DictConfig | dict[str, Any], *, resolve: bool = True) -> dict[str, Any]:
    """A config section as plain containers, which checkpoints and constructors take."""
    content = OmegaConf.to_container(section, resolve=resolve) if OmegaConf.is_config(section) else section
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def make_paths_absolute(config: DictConfig) -> None:
    """Write out the files and folders of a composed config: `~` is the home folder, and what is relative lies in the
    working directory of today, wherever the run is resumed."""
    for key in PATHS:
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        # A split is a rule's name, or a file, whose bare name is looked up beside the dataset.
        if isinstance(value, str) and (key != "data.split" or "/" in value):
            OmegaConf.update(config, key, os.path.abspath(os.path.expanduser(value)))


def _is_experiments(config_path: str) -> bool:
    return config_path.partition("/")[0] in ("", EXPERIMENTS)


@cache
def _group_options(group: str, source: ConfigSource) -> tuple[str, ...]:
    places = [source.searchpath] if source.searchpath else []
    with _initialized(source):
        loader = GlobalHydra.instance().config_loader()
        names = loader.get_group_options(group, config_name=source.name, overrides=places)
    return tuple(name for name in names if not name.startswith("_"))


@contextmanager
def _initialized(source: ConfigSource) -> Iterator[None]:
    """Hydra, set up for the block as `e2enet train` sets it up."""
    register_configs()
    with (
        _outside_of_apps(),
        initialize_config_dir(version_base="1.3", config_dir=str(source.primary), job_name="train"),
    ):
        yield


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
