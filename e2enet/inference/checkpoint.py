"""A trained model as its checkpoint file describes it, and whether several of them can form an ensemble."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.planning.plan import Plan
from e2enet.network.build import build_network

# Where the network sits in the training module; torch.compile adds the second prefix.
NETWORK_PREFIX = "network."
COMPILED_PREFIX = "_orig_mod."


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode and all that prediction and scoring need to know of its training.

    `label_map` renumbers the dataset's label files (value -> label), `regions` unites labels (name -> labels).
    """

    path: Path
    network: nn.Module
    plan: Plan
    labels: dict[int, str]
    channels: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    file_ending: str
    label_map: dict[int, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)


def load_model(path: str | Path) -> LoadedModel:
    """Load a checkpoint file, or checkpoints/best.ckpt of a run folder, onto the CPU.

    Masks of sparse layers are buffers of the network and come with it. Only tensors and plain containers are
    read (`weights_only`): a file that holds any other pickled object is refused. Raises InputError naming the
    file where it is missing, damaged, not one of train.py's, or does not fit the network that it describes.
    """
    path = checkpoint_file(Path(path))
    content = read_checkpoint(path)
    hyper_parameters = content.get("hyper_parameters")
    state = content.get("state_dict")
    if not isinstance(hyper_parameters, Mapping) or not isinstance(state, Mapping):
        raise InputError(f"{path}: is no checkpoint of train.py (expected hyper_parameters and state_dict)")
    try:
        dataset = hyper_parameters["dataset"]
        labels = {int(value): str(name) for value, name in dataset["labels"].items()}
        channels = tuple(str(name) for name in dataset["channels"])
        mirror_axes = tuple(int(axis) for axis in dataset["mirror_axes"])
        plan = Plan.from_dict(hyper_parameters["plan"])
        network = build_network(
            hyper_parameters["network"],
            in_channels=len(channels),
            num_classes=len(labels),
            strides=plan.strides,
        )
        file_ending = str(dataset["file_ending"])
        label_map = {int(value): int(label) for value, label in dataset.get("label_map", {}).items()}
        regions = {str(name): tuple(map(int, united)) for name, united in dataset.get("regions", {}).items()}
    except KeyError as error:
        raise InputError(f"{path}: its hyper_parameters lack {error}, so it cannot be used") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its hyper_parameters describe no usable network: {error}") from error
    _load_weights(network, state, path)
    return LoadedModel(
        path, network.eval(), plan, labels, channels, mirror_axes, file_ending, label_map=label_map, regions=regions
    )


def load_ensemble(paths: Sequence[str | Path]) -> list[LoadedModel]:
    """Load checkpoints of one task; InputError names every difference in plan, labels, channels, axes."""
    if not paths:
        raise InputError("expected at least one checkpoint")
    problems = []
    models = []
    for path in paths:
        try:
            models.append(load_model(path))
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, "checkpoints that cannot be used:")
    first = models[0]
    for other in models[1:]:
        problems += [f"{other.path}: {difference}" for difference in _differences(first, other)]
    raise_problems(problems, f"checkpoints that form no ensemble with {first.path}:")
    return models


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its network, plan, dataset and training, as plain containers; weights stay unread.

    Raises InputError as `load_model` does.
    """
    path = checkpoint_file(Path(path))
    hyper_parameters = read_checkpoint(path, mmap=True).get("hyper_parameters")
    if not isinstance(hyper_parameters, dict):
        raise InputError(f"{path}: is no checkpoint of train.py (expected hyper_parameters)")
    return hyper_parameters


def checkpoint_file(path: Path) -> Path:
    """The path itself, or the best checkpoint of the run folder that it names."""
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise InputError(f"{path}: is a folder without checkpoints/best.ckpt; expected a checkpoint or a run")
        return best
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    return path


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """All of a checkpoint, on the CPU; with `mmap`, tensors stay in the file until they are looked at.

    Raises:
        InputError: what cannot be read, or holds anything but tensors and plain containers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is no checkpoint, or holds pickled objects, which could run code when loaded and are "
            f"refused; expected tensors and plain containers ({_first_line(error)})"
        ) from error
    except (RuntimeError, OSError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected the dictionary that train.py saves")
    return content


def _load_weights(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Strict loading that compares every name and shape first, so that one message tells all."""
    weights: dict[str, Tensor] = {
        name.removeprefix(NETWORK_PREFIX).removeprefix(COMPILED_PREFIX): value
        for name, value in state.items()
        if name.startswith(NETWORK_PREFIX)
    }
    problems = weight_problems(network.state_dict(), weights)
    raise_problems(problems, f"{path}: its weights do not fit the network, labels and channels it describes:")
    network.load_state_dict(weights)


def weight_problems(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Every name and shape in which weights differ from a network's, at most nine lines; [] where they fit."""
    problems = [f"lacks {name}" for name in expected if name not in weights]
    problems += [f"has {name}, which the network has not" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the network {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if len(problems) > 8:
        problems = [*problems[:8], f"and {len(problems) - 8} more"]
    return problems


def _differences(first: LoadedModel, other: LoadedModel) -> list[str]:
    """What keeps two models from being averaged, as `key: theirs, expected ours`."""
    ours, theirs = _comparable(first), _comparable(other)
    return [
        f"{key} is {theirs.get(key)}, expected {ours.get(key)}"
        for key in {**ours, **theirs}
        if ours.get(key) != theirs.get(key)
    ]


def _comparable(model: LoadedModel) -> dict[str, Any]:
    plan = {f"plan.{key}": value for key, value in model.plan.to_dict().items() if key != "batch_size"}
    return {
        "labels": model.labels,
        "channels": model.channels,
        "mirror_axes": model.mirror_axes,
        "file_ending": model.file_ending,
        **plan,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
