"""Checkpoints of train.py as a model folder of nnU-Net v2, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import atomic_path, require_new_folder, write_json
from e2enet.inference.checkpoint import LoadedModel, load_ensemble, load_model
from e2enet.inference.nnunet_model import DATASET, INTENSITIES, NORMALISATION, PLANS, read_nnunet_checkpoint
from e2enet.network import E2ENet
from e2enet.network.dsff import fusion_layers
from e2enet.network.nnunet_arguments import ADAPTER, nnunet_arguments

CONFIGURATION = "3d_fullres"
# It brings scans to RAS, as e2enet does, and reads NIfTI alone.
READER, ENDINGS = "NibabelIOWithReorient", (".nii.gz", ".nii")
# nnU-Net reads (z, y, x). These transposes make it the frame: the depth axis (by its RAS axis) first, then the others
# in ascending order. Depth axis 2: (z, y, x) -> (z, x, y).
FORWARD = {0: (2, 1, 0), 1: (1, 2, 0), 2: (0, 2, 1)}
RESAMPLING = {"order_z": 0, "force_separate_z": None}


def export_to_nnunet(checkpoints: Sequence[str | Path], folder: str | Path) -> Path:
    """Write a model folder for nnUNetv2_predict_from_modelfolder; the checkpoints become its folds 0, 1, ...

    nnU-Net's own trainer builds the network from the plans, so that nnU-Net needs e2enet installed and nothing else.
    The folder is complete or absent.

    Args:
        checkpoints: Of train.py: files or run folders, of one plan and dataset.
        folder: A new or empty folder.

    Raises:
        InputError: the folder is not empty, or nnU-Net has nothing that would predict as the checkpoints do.
    """
    folder = Path(folder)
    require_new_folder(folder)
    models = load_ensemble(checkpoints)
    for model in models:
        raise_problems(_problems(model), f"{model.path}: nnU-Net cannot predict as it does:")
        if _network_of(model) != _network_of(models[0]):
            raise InputError(f"{model.path}: the network of {models[0].path} expected, since folds share their plans")
    with atomic_path(folder) as unfinished:
        write_json(unfinished / PLANS, _plans(models[0], folder.name))
        write_json(unfinished / DATASET, _dataset(models[0]))
        for fold, model in enumerate(models):
            place = unfinished / f"fold_{fold}"
            place.mkdir()
            torch.save(_checkpoint(model), place / "checkpoint_final.pth")
    return folder


def import_from_nnunet(checkpoint: str | Path, path: str | Path) -> Path:
    """Write a checkpoint of nnU-Net as one of train.py, for prediction.

    Args:
        checkpoint: nnU-Net's `.pth` file, in its model folder.
        path: A free place that ends in .ckpt.

    Raises:
        InputError: the file exists already, or nnU-Net's checkpoint cannot be used (`read_nnunet_checkpoint`).
    """
    path = Path(path)
    if path.exists() or path.suffix != ".ckpt":
        raise InputError(f"{path}: a free place expected whose name ends in .ckpt")
    load_model(checkpoint)  # what cannot be used is told by its own name
    content = read_nnunet_checkpoint(Path(checkpoint))
    with atomic_path(path) as unfinished:
        torch.save(content, unfinished)
    return path


def _problems(model: LoadedModel) -> list[str]:
    """Why nnU-Net would not give a model's predictions."""
    problems = []
    if not isinstance(model.network, E2ENet):
        problems.append(f"its network is {type(model.network).__name__}: E2ENet expected")
    if model.file_axes:
        problems.append("it comes from nnU-Net itself, and reads scans as nnU-Net does: export it from there")
    if model.file_ending not in ENDINGS:
        problems.append(f"its scans end in {model.file_ending}: {' or '.join(ENDINGS)} expected by nnU-Net's {READER}")
    if model.spacing_unit not in (None, "mm"):
        problems.append(f"lengths count in {model.spacing_unit}: mm expected, the only unit that nnU-Net knows")
    return problems


def _plans(model: LoadedModel, name: str) -> dict[str, Any]:
    plan, network = model.plan, model.network
    assert isinstance(network, E2ENet)
    forward = FORWARD[plan.depth_axis]
    statistics = {
        str(channel): {theirs: scheme[ours] for ours, theirs in INTENSITIES.items()} if scheme["scheme"] == "ct" else {}
        for channel, scheme in enumerate(plan.normalisation)
    }
    names = {scheme: theirs for theirs, scheme in NORMALISATION.items()}
    configuration: dict[str, Any] = {
        "data_identifier": f"{name}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(plan.patch_size),
        "median_image_size_in_voxels": list(plan.median_shape),
        "spacing": list(plan.spacing),
        "normalization_schemes": [names[scheme["scheme"]] for scheme in plan.normalisation],
        "use_mask_for_norm": [bool(scheme.get("nonzero")) for scheme in plan.normalisation],
        "batch_dice": True,
        "architecture": {
            "network_class_name": ADAPTER,
            "arch_kwargs": nnunet_arguments(network),
            "_kw_requires_import": [],
        },
    }
    for part, order, is_label in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
        configuration[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{part}_kwargs"] = {"is_seg": is_label, "order": order, **RESAMPLING}
    sizes = {layer.group_size for layer in fusion_layers(network).values()} - {1}
    if sizes:
        configuration["dsff"] = {"granularity": "group", "group_size": sizes.pop()}
    return {
        "dataset_name": name,
        "plans_name": "e2enet",
        "image_reader_writer": READER,
        "transpose_forward": list(forward),
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "configurations": {CONFIGURATION: configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": statistics,
    }


def _network_of(model: LoadedModel) -> Any:
    """What the plans say of a model's network and masks."""
    configuration = _plans(model, "")["configurations"][CONFIGURATION]
    return configuration["architecture"], configuration.get("dsff")


def _dataset(model: LoadedModel) -> dict[str, Any]:
    scheme = model.scheme
    foreground: dict[str, Any] = {name: value for value, name in scheme.names.items() if value != 0}
    content: dict[str, Any] = {
        "channel_names": {str(channel): name for channel, name in enumerate(model.channels)},
        "file_ending": model.file_ending,
    }
    if scheme.regions:
        foreground = {name: list(united) for name, united in scheme.regions.items()}
        content["regions_class_order"] = list(scheme.order)
    ignored = {} if scheme.ignore is None else {"ignore": scheme.ignore}
    return content | {"labels": {"background": 0, **foreground, **ignored}}


def _checkpoint(model: LoadedModel) -> dict[str, Any]:
    """What nnU-Net reads of a checkpoint to predict."""
    return {
        "network_weights": {f"network.{name}": value for name, value in model.network.state_dict().items()},
        "trainer_name": "nnUNetTrainer",  # nnU-Net's own builds the network from the plans
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": tuple(model.mirror_axes) or None,
    }
