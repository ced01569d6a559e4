"""The config of e2enet predict: all unknown keys and invalid values are reported before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from e2enet.common.config_check import unresolved_values
from e2enet.common.config_rules import ENGINES
from e2enet.common.configs import as_plain
from e2enet.common.errors import raise_problems
from e2enet.common.overrides import as_text, is_multirun, overrides_of, parse_override, several_values, unreadable
from e2enet.data.formats.listing import RESULT_ENDINGS, spell_endings
from e2enet.inference.folds import ALL_SEEDS, RunSelector

HEADING = "e2enet predict cannot start (all keys: e2enet predict --help):"
PATH_KEYS = ("checkpoint", "input", "output")
PRECISIONS = ("32", "bf16", "16")


@dataclass(frozen=True)
class PredictConfig:
    """Checked settings of a prediction run; `e2enet predict --help` explains each."""

    checkpoint: tuple[Path, ...]
    input: Path
    output: Path
    overlay: bool = False
    probabilities: bool = False
    viewer: bool = False
    overwrite: bool = False
    mirror: bool = True
    step: float = 0.5
    batch_size: int = 1
    device: str = "auto"
    precision: str = "32"
    engine: str = "auto"
    experiment: str | None = None
    row: str | None = None
    seed: int | Literal["all"] | None = None
    allow_missing_folds: bool = False
    trust: tuple[str, ...] = ()
    postprocessing: str = "auto"
    file_ending: str | None = None

    @property
    def choice(self) -> RunSelector:
        """The selected configuration of a sweep folder."""
        return RunSelector(self.experiment, self.row, self.seed)


def read_config(config: DictConfig | Mapping[str, Any]) -> PredictConfig:
    """Read settings from a composed config; one InputError lists missing keys, unknown keys and wrong values."""
    values = _resolved(config) if isinstance(config, DictConfig) else dict(config)
    raise_problems(_value_problems(values), HEADING)
    paths = values["checkpoint"] if isinstance(values["checkpoint"], list) else [values["checkpoint"]]
    given = {str(key): value for key, value in values.items() if key not in PATH_KEYS}
    given["trust"] = tuple(given.get("trust", ()))
    if "precision" in given:
        given["precision"] = str(given["precision"])
    return PredictConfig(
        checkpoint=tuple(Path(path).expanduser() for path in paths),
        input=Path(values["input"]).expanduser(),
        output=Path(values["output"]).expanduser(),
        **given,
    )


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line with quotes around texts that Hydra would parse as numbers."""
    return [as_text(text, lambda key: CHECKS[key][0] if key in CHECKS else None) for text in arguments]


def check_arguments(arguments: Sequence[str], config_folder: str) -> None:
    """Raise one InputError for all unknown keys and wrong values on the command line.

    Hydra itself stops at the first unknown key. Here the other overrides are composed without it and checked too.
    Flags (--help) and sweeps (-m a=1,2) are left to Hydra.
    """
    overrides = overrides_of(arguments)
    known, problems = [], []
    for override in overrides:
        try:
            parsed = parse_override(override)
        except HydraException as error:
            problems.append(unreadable(override, error))
            continue
        key = parsed.key_or_group
        if parsed.is_hydra_override() or key.startswith("hydra/"):
            known.append(override)
        elif key not in CHECKS:
            problems.append(f"{key}: no such key; allowed are {', '.join(CHECKS)}")
        elif parsed.is_sweep_override() and not is_multirun(arguments):
            problems.append(several_values(override))
        elif not parsed.is_sweep_override():
            known.append(override)
    if not problems:
        return
    with initialize_config_dir(config_folder, version_base="1.3"):
        values = _resolved(compose("predict", known))
    raise_problems([*problems, *_value_problems(values)], HEADING)


def _resolved(config: DictConfig) -> dict[Any, Any]:
    raise_problems(list(unresolved_values(config).values()), HEADING)
    return as_plain(config)


def _value_problems(values: Mapping[Any, Any]) -> list[str]:
    problems = [f"{key}: no such key; allowed are {', '.join(CHECKS)}" for key in values if key not in CHECKS]
    for key, (is_allowed, expected) in CHECKS.items():
        if values.get(key, "???") == "???":
            if key in PATH_KEYS:
                problems.append(f"{key}: not given; expected {expected}")
        elif not is_allowed(values[key]):
            problems.append(f"{key}={values[key]}: expected {expected}")
    return problems


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_path_or_list(value: Any) -> bool:
    return _is_path(value) or (isinstance(value, list) and bool(value) and all(map(_is_path, value)))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_step(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_batch_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None


def _is_precision(value: Any) -> bool:
    return not isinstance(value, bool) and str(value) in PRECISIONS


def _is_name(value: Any) -> bool:
    return value is None or _is_path(value)


def _is_seed(value: Any) -> bool:
    return value in (None, ALL_SEEDS) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


FLAG = (_is_bool, "true or false")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "checkpoint": (
        _is_path_or_list,
        "a checkpoint file, a run folder, a list of them, a sweep folder, or nnU-Net's model folder",
    ),
    "input": (_is_path, "a folder as the training data's, a folder of images or of DICOM slices, or an image file"),
    "output": (_is_path, "a folder"),
    "overlay": FLAG,
    "probabilities": FLAG,
    "viewer": FLAG,
    "overwrite": FLAG,
    "mirror": FLAG,
    "step": (_is_step, "a number above 0 and up to 1"),
    "batch_size": (_is_batch_size, "a whole number from 1"),
    "device": (_is_device, "auto, cpu, cuda or cuda:N"),
    "precision": (_is_precision, "32, bf16 or 16"),
    "trust": (
        lambda value: isinstance(value, list) and all(map(_is_path, value)),
        "a list of classes",
    ),
    "engine": (lambda value: value in ENGINES, "auto, dense, sparse or fused"),
    "experiment": (_is_name, "null or an experiment's name"),
    "row": (_is_name, "null or a row's name"),
    "seed": (_is_seed, "null, all or a whole number from 0"),
    "allow_missing_folds": FLAG,
    "postprocessing": (_is_path, "auto, none or a postprocessing.json"),
    "file_ending": (lambda value: value in (None, *RESULT_ENDINGS), f"null, {spell_endings(RESULT_ENDINGS)}"),
}
