"""A model as a MONAI bundle: `python -m monai.bundle run` predicts scans with it as `e2enet predict` does.

The folders and names are those of MONAI's bundle specification. The config names the parts in `bundle_parts`, so the
package must be installed where the bundle runs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.data.formats.listing import NIFTI_ENDINGS
from e2enet.export import bundle_parts
from e2enet.export.bundle_texts import LICENCE, readme_text
from e2enet.export.description import describe_model
from e2enet.inference.checkpoint import LoadedModel, read_hyper_parameters

PARTS = bundle_parts.__name__
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
REFERENCE = "Wu et al., E2ENet: Dynamic Sparse Feature Fusion for Accurate and Efficient 3D Medical Image Segmentation"
VERSION = "0.1.0"


def write_bundle(model: LoadedModel, folder: Path) -> None:
    """Write configs/, models/model.pt, docs/README.md and LICENSE into a folder.

    Raises:
        InputError: the checkpoint holds text that MONAI would evaluate instead of reading it.
    """
    settings = _network_settings(model)
    name = str(read_hyper_parameters(model.path).get("dataset", {}).get("name", "scans"))
    stored = {
        "name": name,
        "labels": model.labels,
        "regions": model.scheme.regions,
        "channels": model.channels,
        "spacing_unit": model.spacing_unit,
        "network": settings,
        "layout": _renamed(model.layout, "layout"),
    }
    _require_plain(stored, str(model.path))
    write_json(folder / "configs" / "metadata.json", metadata(model, name))
    write_json(folder / "configs" / "inference.json", inference_config(model, settings))
    (folder / "models").mkdir()
    state = nn.ModuleDict({"network": model.network}).state_dict()  # the names of WindowProbabilities
    torch.save(state, folder / "models" / "model.pt")
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text(readme_text(model, name), encoding="utf-8")
    (folder / "LICENSE").write_text(LICENCE, encoding="utf-8")


def inference_config(model: LoadedModel, network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of inference.json; `network` holds the network's settings with its class under `name`."""
    facts = describe_model(model)
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "channels": facts["channels"],
        "plan": facts["plan"],
        "network_def": _part(
            "WindowProbabilities",
            network=dict(network),
            channels="@channels",
            num_outputs=model.scheme.num_outputs,
            strides="@plan#strides",
            patch_size="@plan#patch_size",
            mirror_axes=facts["mirror_axes"],
            sigmoid=bool(model.scheme.regions),
        ),
        "network": "$@network_def.to(@device)",
        "datalist": _part(
            "find_scans",
            folder="@dataset_dir",
            channels="@channels",
            file_ending=model.file_ending,
            numbered_ids=model.numbered_ids,
            layout=_renamed(model.layout, "layout"),
        ),
        **_transforms(model, facts),
        **_engine(facts),
    }


def _transforms(model: LoadedModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of both transforms, and of the one that writes label images under the case's name."""
    highest = max((*model.labels, *model.scheme.order))
    common = {"plan": "@plan", "file_axes": model.file_axes}
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "",
        "output_ext": model.file_ending if model.file_ending in NIFTI_ENDINGS else ".nii.gz",
        "output_dtype": "$np.uint8" if highest <= 255 else "$np.int16",
        "separate_folder": False,
        "resample": False,
    }
    restore = _part(
        "RestoreLabelsd",
        keys="pred",
        **common,
        regions_class_order=facts["regions_class_order"],
        keep_largest=facts["keep_largest"],
    )
    return {
        "preprocessing": _chain(_part("PreprocessScand", keys="image", **common, unit=model.spacing_unit)),
        "postprocessing": _chain(restore, save),
    }


def _engine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of MONAI's own parts, which drive the others."""
    return {
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@plan#patch_size",
            "sw_batch_size": 1,
            "overlap": 1 - facts["step"],
            "mode": "gaussian",
            "sw_device": "@device",
            "device": "cpu",
            "progress": True,
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(model: LoadedModel, name: str) -> dict[str, Any]:
    """Return the content of metadata.json for a model that was trained on the dataset `name`."""
    classes = ", ".join(label for value, label in model.labels.items() if value != 0)
    versions = {package: importlib.metadata.version(package) for package in ("monai", "torch", "numpy")}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported by e2enet"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].partition("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {
            package: importlib.metadata.version(package) for package in ("e2enet", "nibabel", "simpleitk")
        },
        "name": f"{name} segmentation",
        "task": f"Segmentation of {classes}",
        "description": f"E2ENet, trained on {name}, segments {classes} in 3D scans ({', '.join(model.channels)}).",
        "authors": "whoever trained the model: to be filled in",
        "copyright": "to be filled in",
        "data_source": name,
        "intended_use": "research; not for diagnosis",
        "references": [f"{REFERENCE}, NeurIPS 2024, arXiv 2312.04727"],
        "network_data_format": _data_format(model),
    }


def _data_format(model: LoadedModel) -> dict[str, Any]:
    """Return the section about the network's input and output."""
    outputs = list(model.scheme.regions) or list(model.labels.values())
    is_ct = any(way["scheme"] == "ct" for way in model.plan.normalisation)
    patch = {
        "type": "image",
        "spatial_shape": list(model.plan.patch_size),
        "dtype": "float32",
        "is_patch_data": True,
    }
    image = {
        **patch,
        "format": "hounsfield" if is_ct else "magnitude",
        "modality": "CT" if is_ct else "n/a",
        "num_channels": len(model.channels),
        "value_range": [],
        "channel_def": {str(index): channel for index, channel in enumerate(model.channels)},
    }
    pred = {
        **patch,
        "format": "classes" if model.scheme.regions else "labels",
        "num_channels": len(outputs),
        "value_range": [0, 1],
        "channel_def": {str(index): output for index, output in enumerate(outputs)},
    }
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}


def _network_settings(model: LoadedModel) -> dict[str, Any]:
    """Return the checkpoint's network section with its class under `name`: MONAI's parser builds every `_target_`."""
    found = _renamed(read_hyper_parameters(model.path)["network"], "name")
    assert found is not None  # the model was built from it
    return found


def _renamed(section: Any, name: str) -> dict[str, Any] | None:
    if not isinstance(section, Mapping):
        return None
    return {name if key == "_target_" else str(key): value for key, value in section.items()}


def _require_plain(value: Any, place: str) -> None:
    """Raise InputError for what MONAI's parser would run or replace: a checkpoint may come from anybody."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise InputError(
            f"{place} is {value!r}: text without $, @ or % at its start expected, since MONAI evaluates it"
        )
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise InputError(
                f"{place} holds _target_={value['_target_']!r}: plain values expected, since MONAI builds it"
            )
        for key, one in value.items():
            _require_plain(one, f"{place}: {key}")
    elif isinstance(value, list | tuple):
        for one in value:
            _require_plain(one, place)


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{PARTS}.{name}", **arguments}


def _chain(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}
