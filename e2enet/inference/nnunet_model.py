"""A model that nnU-Net v2 trained with E2ENet, read as a checkpoint of train.py; nnU-Net itself is not needed.

nnU-Net keeps a folder per model: plans.json, dataset.json and fold_N/checkpoint_final.pth.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2enet.common.errors import InputError, first_line, raise_problems, refused_part
from e2enet.common.files import read_json
from e2enet.data.formats.label_section import read_scheme
from e2enet.network.nnunet_arguments import ADAPTER, e2enet_arguments

ENDING = ".pth"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
PLANS, DATASET = "plans.json", "dataset.json"
# How each of nnU-Net's readers orders axes: whether as they lie in the file, or after bringing them to RAS.
KEEPS_FILE_AXES = {"SimpleITKIO": True, "NibabelIO": True, "NibabelIOWithReorient": False}
NORMALISATION = {"CTNormalization": "ct", "ZScoreNormalization": "zscore", "NoNormalization": "none"}
INTENSITIES = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
LAYOUT = "e2enet.data.layouts.described.NNUNetLayout"
NETWORK = "e2enet.network.E2ENet"


def fold_checkpoint(fold: Path) -> Path | None:
    """Return the final checkpoint in nnU-Net's folder of a fold, else the best, else the latest; None without one."""
    return next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)


def read_nnunet_checkpoint(path: Path) -> dict[str, Any]:
    """Return `hyper_parameters` and `state_dict`, as in train.py's checkpoints, of a checkpoint that nnU-Net wrote.

    plans.json and dataset.json are read from the model's folder, two levels above.

    Nothing in the file can run code. Beside tensors and plain containers only NumPy's numbers and arrays are read,
    which nnU-Net keeps as its log.

    Raises:
        InputError: names the file, and everything in it that e2enet cannot use.
    """
    content = _read(path)
    folder = path.absolute().parent.parent
    plans, dataset = (_read_object(folder / name) for name in (PLANS, DATASET))
    started = content.get("init_args")
    name = started.get("configuration") if isinstance(started, Mapping) else None
    if not isinstance(content.get("network_weights"), Mapping) or not isinstance(name, str):
        raise InputError(f"{path}: is no checkpoint of nnU-Net v2 (expected network_weights and init_args)")
    source = f"{folder / PLANS}, configuration {name}"
    try:
        return _translated(content, plans, dataset, name, source)
    except InputError:
        raise
    except Exception as error:  # anybody may have written them: values of other kinds make Python raise anything
        raise InputError(f"{source}: describes no model that can be used ({first_line(error)})") from error


def _translated(
    content: Mapping[str, Any], plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str, source: str
) -> dict[str, Any]:
    """What nnU-Net says of a model, in the words of train.py's checkpoints."""
    configuration = _configuration(plans, name, source)
    architecture = configuration.get("architecture")
    network_class = architecture.get("network_class_name") if isinstance(architecture, Mapping) else None
    if not isinstance(architecture, Mapping) or network_class != ADAPTER:
        raise InputError(f"{source}: its network is {network_class}; {ADAPTER} expected")
    arguments = e2enet_arguments(architecture.get("arch_kwargs", {}), source)
    strides = arguments.pop("strides")
    problems: list[str] = []
    axes = _Axes.of(plans, problems)
    scheme, wrong = read_scheme(dataset)
    problems += wrong
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, Mapping) or not channels or not all(str(index).isdecimal() for index in channels):
        problems.append(f"channel_names is {channels!r}: an object like {{'0': 'CT'}} expected")
        channels = {}
    normalisation = _normalisation(plans, configuration, len(channels), problems)
    problems += _unsupported(configuration)
    raise_problems(problems, f"{source}: cannot be used:")
    assert scheme is not None
    plan = {
        "depth_axis": axes.depth_axis,
        "spacing": axes.order([float(mm) for mm in configuration["spacing"]]),
        "patch_size": axes.order([int(edge) for edge in configuration["patch_size"]]),
        "strides": [axes.order(stride) for stride in strides],
        "batch_size": int(configuration["batch_size"]),
        "normalisation": normalisation,
        "median_shape": axes.order([max(1, round(edge)) for edge in configuration["median_image_size_in_voxels"]]),
    }
    for key in ("kernel_size", "inner_kernel_size"):
        if key in arguments:
            arguments[key] = axes.order(arguments[key])
    mirrored = content.get("inference_allowed_mirroring_axes") or ()
    return {
        "hyper_parameters": {
            "network": {"_target_": NETWORK, **arguments},
            "plan": plan,
            "dataset": {
                "name": str(plans.get("dataset_name", "nnU-Net")),
                **scheme.to_plain(),
                "channels": [str(channels[index]) for index in sorted(channels, key=int)],
                "mirror_axes": sorted(axes.place(int(axis)) for axis in mirrored),
                "file_ending": dataset.get("file_ending", ".nii.gz"),
                "layout": {"_target_": LAYOUT},
                "file_axes": axes.of_file,
            },
            "training": {},
            "group_size": _group_size(configuration),
        },
        "state_dict": {str(key): axes.order_kernels(weight) for key, weight in content["network_weights"].items()},
    }


class _Axes:
    """nnU-Net's order of axes against the frame's (D, H, W).

    nnU-Net reads (z, y, x) and transposes; the frame has the depth axis first and the others in ascending order. With
    nnU-Net's usual transpose (z, y, x) that is (z, x, y): H and W are swapped, in the kernels too.
    """

    def __init__(self, forward: list[int], of_file: bool) -> None:
        axes = [2 - axis for axis in forward]
        self.depth_axis, self.swapped, self.of_file = axes[0], axes[1] > axes[2], of_file

    @classmethod
    def of(cls, plans: Mapping[str, Any], problems: list[str]) -> _Axes:
        forward, reader = plans.get("transpose_forward"), plans.get("image_reader_writer")
        if not isinstance(forward, list) or sorted(map(str, forward)) != ["0", "1", "2"]:
            problems.append(f"transpose_forward is {forward!r}: the axes 0, 1, 2 in some order expected")
            forward = [0, 1, 2]
        if reader not in KEEPS_FILE_AXES:
            problems.append(f"image_reader_writer is {reader!r}: {', '.join(KEEPS_FILE_AXES)} expected")
        return cls(forward, KEEPS_FILE_AXES.get(str(reader), True))

    def place(self, axis: int) -> int:
        """Where an axis of nnU-Net's lies in the frame."""
        return {1: 2, 2: 1}.get(axis, axis) if self.swapped else axis

    def order(self, triple: Any) -> list[Any]:
        """A triple of nnU-Net's in the frame's order."""
        depth, height, width = triple
        return [depth, width, height] if self.swapped else [depth, height, width]

    def order_kernels(self, weight: Any) -> Any:
        """The same of a convolution's weight (.., D, H, W)."""
        if self.swapped and isinstance(weight, Tensor) and weight.ndim == 5:
            return weight.transpose(3, 4).contiguous()
        return weight


def _read(path: Path) -> dict[str, Any]:
    """What nnU-Net's checkpoint holds, with NumPy's numbers and arrays as the only objects."""
    try:
        with torch.serialization.safe_globals(_numpy_types()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is no checkpoint, or holds pickled objects, which could run code when loaded and are refused; "
            f"expected tensors, plain containers and NumPy's numbers{refused_part(error)}"
        ) from error
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise InputError(f"{path}: cannot be read as a checkpoint of nnU-Net ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected the dictionary that nnU-Net saves")
    return content


def _numpy_types() -> list[Any]:
    """What rebuilds NumPy's numbers and arrays of numbers, under the names of NumPy 1 and 2."""
    functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    builders = [
        (function, f"{module}.multiarray.{function.__name__}")
        for function in functions
        for module in ("numpy.core", "numpy._core")
    ]
    numbers = [
        type(np.dtype(kind)) for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    ]
    return [*builders, np.dtype, np.ndarray, *numbers]


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, an object expected")
    return content


def _configuration(plans: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    """A configuration of the plans, with what it inherits."""
    found: dict[str, Any] = {}
    seen: list[str] = []
    while True:
        part = (plans.get("configurations") or {}).get(name)
        if not isinstance(part, Mapping) or name in seen:
            raise InputError(f"{source}: no such configuration {name}, or one that inherits from itself")
        seen.append(name)
        found = {**part, **found}
        if "inherits_from" not in part:
            break
        name = str(part["inherits_from"])
    required = ("spacing", "patch_size", "batch_size", "median_image_size_in_voxels", "normalization_schemes")
    raise_problems([f"{key} is missing" for key in required if key not in found], f"{source}: cannot be used:")
    lengths = {key: found[key] for key in ("spacing", "patch_size", "median_image_size_in_voxels")}
    wrong = [
        f"{key} is {value!r}: three numbers expected"
        for key, value in lengths.items()
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(one, int | float) for one in value)
    ]
    raise_problems(wrong, f"{source}: cannot be used:")
    return found


def _normalisation(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int, problems: list[str]
) -> list[dict[str, Any]]:
    names = configuration["normalization_schemes"]
    masked = configuration.get("use_mask_for_norm", [False] * channels)
    if not isinstance(names, list) or not isinstance(masked, list) or not len(names) == len(masked) == channels:
        problems.append(f"normalization_schemes is {names!r}: one for each of {channels} channels expected")
        return []
    schemes: list[dict[str, Any]] = []
    for channel, (name, inside) in enumerate(zip(names, masked, strict=True)):
        scheme = NORMALISATION.get(str(name))
        if scheme is None:
            problems.append(f"normalization_schemes has {name!r}: {', '.join(NORMALISATION)} expected")
        elif scheme == "ct":
            found = (plans.get("foreground_intensity_properties_per_channel") or {}).get(str(channel)) or {}
            schemes.append({"scheme": "ct"} | {key: found.get(theirs) for key, theirs in INTENSITIES.items()})
        else:
            schemes.append({"scheme": scheme} | ({"nonzero": bool(inside)} if scheme == "zscore" else {}))
    return schemes


def _unsupported(configuration: Mapping[str, Any]) -> list[str]:
    """What of a configuration decides the result and is not here."""
    problems = []
    if configuration.get("previous_stage"):
        problems.append(f"previous_stage is {configuration['previous_stage']!r}: none expected (cascades need nnU-Net)")
    preprocessor = configuration.get("preprocessor_name", "DefaultPreprocessor")
    if preprocessor != "DefaultPreprocessor":
        problems.append(f"preprocessor_name is {preprocessor!r}: DefaultPreprocessor expected")
    for name, order in (("resampling_fn_data", 3), ("resampling_fn_probabilities", 1)):
        if configuration.get(name, "resample_data_or_seg_to_shape") != "resample_data_or_seg_to_shape":
            problems.append(f"{name} is {configuration[name]!r}: resample_data_or_seg_to_shape expected")
        expected: dict[str, Any] = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        given = configuration.get(f"{name}_kwargs", expected)
        if not isinstance(given, Mapping) or {**expected, **given} != expected:
            problems.append(f"{name}_kwargs is {given!r}: {expected} expected")
    return problems


def _group_size(configuration: Mapping[str, Any]) -> int:
    """Output channels that share their inputs in the masks: 1 for single kernels."""
    dsff = configuration.get("dsff")
    if not isinstance(dsff, Mapping) or dsff.get("granularity", "kernel") != "group":
        return 1
    size: int = dsff.get("group_size", 16)
    return size
