"""Load trained models from checkpoint files, and check that several of them can form an ensemble."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError, first_line, raise_problems, refused_part
from e2enet.data.formats.grid import Unit
from e2enet.data.formats.listing import FILE_ENDINGS, spell_endings
from e2enet.data.formats.scheme import LabelScheme, scheme_problems
from e2enet.data.planning.plan import Plan
from e2enet.inference.checkpoint_digest import load_unchanged
from e2enet.inference.nnunet_model import ENDING as NNUNET_ENDING
from e2enet.inference.nnunet_model import fold_checkpoint, read_nnunet_checkpoint
from e2enet.network.build import build_network
from e2enet.network.dsff import set_group_size
from e2enet.network.packed import MASK, packed_weights, packing_problems, unpack_kernels

# Prefix of the network's weights in the training module; torch.compile adds the second one.
NETWORK_PREFIX = "network."
COMPILED_PREFIX = "_orig_mod."
MAX_LINES = 8


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, with the facts of its training that prediction and scoring need.

    Attributes:
        digest: `checkpoint_digest` of the files that were read, which may have been replaced since.
        label_map: Value in the dataset's label files -> label.
        regions: Name -> labels of further regions to score, beside those of the `scheme`.
        numbered_ids: How the dataset's files are named (`naming.has_numbered_ids`).
        layout: How the dataset's folder was organised; None in checkpoints of earlier versions.
        spacing_unit: Unit of lengths in the dataset's files; None for that of their headers.
    """

    path: Path
    network: nn.Module
    plan: Plan
    scheme: LabelScheme
    channels: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    file_ending: str
    digest: str
    label_map: dict[int, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbered_ids: bool = False
    layout: Any = None
    spacing_unit: Unit | None = None
    file_axes: bool = False  # scans keep the axes and directions of their files (`Geometry`)

    @property
    def labels(self) -> dict[int, str]:
        """Label -> name of the predicted classes, background included."""
        return self.scheme.names


def load_model(path: str | Path) -> LoadedModel:
    """Load a checkpoint file, or checkpoints/best.ckpt of a run folder, onto the CPU.

    Masks of sparse layers are buffers of the network and are loaded with it, as is their `group_size`. A file of packed
    weights (compact.ckpt) gives the same network as the file from which it was made. Only tensors and plain containers
    are read (`weights_only`).

    Raises:
        InputError: names the file. It is missing, damaged or not from e2enet train, holds other pickled objects, does
            not fit the network that it describes, or is replaced each time while it is read.
    """
    path = checkpoint_file(Path(path))
    return load_unchanged(path, partial(_load, path))


def _load(path: Path, digest: str) -> LoadedModel:
    content = read_nnunet_checkpoint(path) if path.suffix == NNUNET_ENDING else read_checkpoint(path)
    hyper_parameters = content.get("hyper_parameters")
    state = content.get("state_dict")
    if not isinstance(hyper_parameters, Mapping) or not isinstance(state, Mapping):
        raise InputError(f"{path}: is no checkpoint of e2enet train (expected hyper_parameters and state_dict)")
    weights = _weights(state, path)
    try:
        dataset = hyper_parameters["dataset"]
        scheme = LabelScheme.from_plain(dataset)
        channels = tuple(str(name) for name in dataset["channels"])
        mirror_axes = tuple(int(axis) for axis in dataset["mirror_axes"])
        plan = Plan.from_dict(hyper_parameters["plan"])
        file_ending = str(dataset["file_ending"])
        label_map = {int(value): int(label) for value, label in dataset.get("label_map", {}).items()}
        regions = {str(name): tuple(map(int, united)) for name, united in dataset.get("regions", {}).items()}
        build = partial(
            build_network,
            dict(hyper_parameters["network"]),
            in_channels=len(channels),
            num_classes=scheme.num_outputs,
            strides=plan.strides,
            patch_size=plan.patch_size,
        )
        expected = _expected_weights(build)
    except KeyError as error:
        raise InputError(f"{path}: its hyper_parameters lack {error}, so it cannot be used") from error
    except Exception as error:  # their content is arbitrary, so Python or torch may raise anything
        raise InputError(f"{path}: its hyper_parameters describe no usable network: {error}") from error
    raise_problems(
        _dataset_problems(scheme, channels, mirror_axes, file_ending, plan), f"{path}: its dataset cannot be used:"
    )
    raise_problems(
        weight_problems(expected, weights),
        f"{path}: its weights do not fit the network, labels and channels it describes:",
    )
    network = build()
    network.load_state_dict(unpack_kernels(weights, expected))
    try:
        set_group_size(network, hyper_parameters.get("group_size", 1))
    except ValueError as error:
        raise InputError(f"{path}: its masks are not what its hyper_parameters say: {error}") from error
    return LoadedModel(
        path,
        network.eval(),
        plan,
        scheme,
        channels,
        mirror_axes,
        file_ending,
        digest,
        label_map=label_map,
        regions=regions,
        numbered_ids=bool(dataset.get("numbered_ids", False)),
        layout=dataset.get("layout"),
        spacing_unit=dataset.get("spacing_unit"),
        file_axes=bool(dataset.get("file_axes", False)),
    )


def load_ensemble(paths: Sequence[str | Path]) -> list[LoadedModel]:
    """Load checkpoints of one task; InputError lists every difference in plan, labels, channels, axes or ending."""
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
    """Read a checkpoint's network, plan, dataset and training sections as plain containers, but not its weights.

    Raises InputError as `load_model` does.
    """
    path = checkpoint_file(Path(path))
    if path.suffix == NNUNET_ENDING:
        found: dict[str, Any] = read_nnunet_checkpoint(path)["hyper_parameters"]
        return found
    hyper_parameters = read_checkpoint(path, mmap=True).get("hyper_parameters")
    if not isinstance(hyper_parameters, dict):
        raise InputError(f"{path}: is no checkpoint of e2enet train (expected hyper_parameters)")
    return hyper_parameters


def checkpoint_file(path: Path) -> Path:
    """Return the path itself, or the best checkpoint if it is a run folder or nnU-Net's folder of a fold."""
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        found = best if best.is_file() else fold_checkpoint(path)
        if found is None:
            raise InputError(f"{path}: is a folder without checkpoints/best.ckpt; expected a checkpoint or a run")
        return found
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    return path


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a whole checkpoint onto the CPU; with `mmap`, tensors stay in the file until they are used.

    Raises:
        InputError: the file cannot be read, or holds anything but tensors and plain containers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is no checkpoint, or holds pickled objects, which could run code when loaded and are "
            f"refused; expected tensors and plain containers{refused_part(error)}"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise InputError(f"{path}: cannot be read as a checkpoint of e2enet train ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected the dictionary that e2enet train saves")
    return content


def _expected_weights(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return name -> tensor of a network's weights, of which only the shapes are used."""
    try:
        # On the meta device: a network that a file only claims to hold is never allocated.
        with torch.device("meta"):
            return build().state_dict()
    except InputError as error:
        if "meta tensors" not in str(error):
            raise
    return build().state_dict()  # its constructor reads tensor values, as that of MONAI's SwinUNETR


def _weights(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the network's tensors by its own names; InputError for anything but plain tensors of finite values."""
    weights = {
        name.removeprefix(NETWORK_PREFIX).removeprefix(COMPILED_PREFIX): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(NETWORK_PREFIX)
    }
    problems = []
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            problems.append(f"{name} is a {type(value).__name__}, a plain tensor expected")
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            problems.append(f"{name} has shape {tuple(value.shape)}, but fewer values than that in the file")
        elif not bool(torch.isfinite(value).all()):
            problems.append(f"{name} holds NaN or infinity, as after a training that diverged; finite weights expected")
    raise_problems(problems[:MAX_LINES], f"{path}: its weights cannot be used:")
    return weights


def _dataset_problems(
    scheme: LabelScheme, channels: Sequence[str], mirror_axes: Sequence[int], file_ending: str, plan: Plan
) -> list[str]:
    """Return the problems of a checkpoint's dataset section; the ending is checked since it is part of file names."""
    labels, problems = scheme.names, scheme_problems(scheme)
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        problems.append(f"labels are {sorted(labels)}: 0, 1, .. expected, background and at least one other")
    if len(channels) != len(plan.normalisation):
        problems.append(f"channels are {list(channels)}: {len(plan.normalisation)} of them expected, as in its plan")
    if not set(mirror_axes) <= {0, 1, 2} or len(set(mirror_axes)) < len(mirror_axes):
        problems.append(f"mirror_axes are {list(mirror_axes)}: different axes out of 0, 1, 2 expected")
    if file_ending not in FILE_ENDINGS:
        problems.append(f"file_ending is {file_ending!r}: {spell_endings()} expected")
    return problems


def weight_problems(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Return every name and shape in which weights differ from a network's, at most nine lines; [] if they fit.

    Weights of fusion layers may be packed (network.packed).
    """
    packed = packed_weights(weights, expected)
    lacking = [name for name in expected if name not in weights]
    masks = [name for name in lacking if name.endswith(MASK)]
    problems = [f"lacks the masks of {len(masks)} sparse layers ({masks[0]}, ..)"] if masks else []
    problems += [f"lacks {name}" for name in lacking if not name.endswith(MASK)]
    problems += [f"has {name}, which the network has not" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the network {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and name not in packed and weights[name].shape != value.shape
    ]
    problems += packing_problems(weights, expected)
    if len(problems) > MAX_LINES:
        problems = [*problems[:MAX_LINES], f"and {len(problems) - MAX_LINES} more"]
    return problems


def _differences(first: LoadedModel, other: LoadedModel) -> list[str]:
    """Return the differences that prevent averaging two models, as `key is theirs, expected ours`."""
    ours, theirs = _comparable(first), _comparable(other)
    return [
        f"{key} is {theirs.get(key)}, expected {ours.get(key)}"
        for key in {**ours, **theirs}
        if ours.get(key) != theirs.get(key)
    ]


def _comparable(model: LoadedModel) -> dict[str, Any]:
    plan = {f"plan.{key}": value for key, value in model.plan.to_dict().items() if key != "batch_size"}
    return {
        **model.scheme.to_plain(),
        "channels": model.channels,
        "mirror_axes": model.mirror_axes,
        "file_ending": model.file_ending,
        "file_axes": model.file_axes,
        **plan,
    }
