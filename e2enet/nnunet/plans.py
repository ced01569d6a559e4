"""nnU-Net's plans for E2ENet: nnU-Net's own rules, with the memory that E2ENet takes in the place of its U-Net's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

from e2enet.common.errors import InputError, raise_problems
from e2enet.network import E2ENet
from e2enet.network.nnunet_arguments import ADAPTER, e2enet_arguments, nnunet_arguments
from e2enet.nnunet.memory import feature_map_size
from e2enet.nnunet.settings import SECTION, TRAINING

PLANS_NAME = "nnUNetE2ENetPlans"
BASE_FEATURES = 48  # the paper's
RAW, PREPROCESSED = "nnUNet_raw", "nnUNet_preprocessed"  # nnU-Net's environment variables


class E2ENetPlanner(ExperimentPlanner):
    """nnU-Net's planner, with E2ENet as its network.

    Spacing, normalisation, the rules for strides, patch and batch are nnU-Net's. The estimate of memory is E2ENet's.
    There is no 2d configuration, since E2ENet is three-dimensional.

    Args:
        dataset: Name or number of the dataset.
        memory_gb: Memory of the GPU to plan for, in GB.
        plans_name: Name of the plans file, without `.json`.
        base_features: Channels at full resolution.
        sections: What each configuration says beside nnU-Net's keys: its sections `dsff` and `training`.
    """

    def __init__(
        self,
        dataset: str | int,
        memory_gb: float = 8.0,
        plans_name: str = PLANS_NAME,
        base_features: int = BASE_FEATURES,
        sections: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dataset, gpu_memory_target_in_gb=memory_gb, plans_name=plans_name)
        self.UNet_base_num_features = base_features
        self.sections = dict(sections or {})

    def static_estimate_VRAM_usage(  # noqa: N802 - nnU-Net's name
        self, patch_size: Sequence[int], input_channels: int, output_channels: int, *architecture: Any
    ) -> float:
        """Return E2ENet's memory for a patch, in the unit of nnU-Net's planner (`feature_map_size`)."""
        _, arch_kwargs, _ = architecture
        return feature_map_size(_network(arch_kwargs, input_channels, output_channels), patch_size)

    def get_plans_for_configuration(self, spacing: Sequence[float], *arguments: Any) -> dict[str, Any]:
        """Return nnU-Net's plan of a configuration with E2ENet as the network; {} for the 2d configuration."""
        if len(spacing) == 2:
            return {}
        plan: dict[str, Any] = super().get_plans_for_configuration(spacing, *arguments)
        network = _network(plan["architecture"]["arch_kwargs"], 1, 2)
        plan["architecture"] = {
            "network_class_name": ADAPTER,
            "arch_kwargs": nnunet_arguments(network),
            "_kw_requires_import": [],
        }
        return plan | self.sections

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans as nnU-Net does, without the 2d configuration."""
        del plans["configurations"]["2d"]
        if not plans["configurations"]:
            raise InputError(f"{self.dataset_name}: holds 2D images; E2ENet needs three dimensions")
        super().save_plans(plans)


def plan_dataset(
    dataset: str,
    *,
    memory_gb: float = 8.0,
    plans_name: str = PLANS_NAME,
    base_features: int = BASE_FEATURES,
    dsff: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> Path:
    """Write the plans of an nnU-Net dataset for E2ENet, after its fingerprint if there is none yet; return their file.

    Args:
        dataset: The dataset's folder in nnUNet_raw or nnUNet_preprocessed, or its name or number.
        memory_gb, plans_name, base_features: See `E2ENetPlanner`.
        dsff, training: The sections of each configuration (`nnunet.settings`); None leaves one out.
        processes: For the fingerprint, which reads every scan.

    Raises:
        InputError: no such dataset, or nnU-Net's environment variables are not set.
    """
    name = find_dataset(dataset)
    folder = Path(os.environ[PREPROCESSED]) / name
    if not (folder / "dataset_fingerprint.json").is_file():
        extract_fingerprint_dataset(int(name[7:10]), num_processes=processes, check_dataset_integrity=True)
    given = {SECTION: dsff, TRAINING: training}
    sections = {section: dict(values) for section, values in given.items() if values}
    planner = E2ENetPlanner(name, memory_gb, plans_name, base_features, sections)
    planner.plan_experiment()
    return folder / f"{plans_name}.json"


def find_dataset(dataset: str) -> str:
    """Return the name, such as Dataset004_Hippocampus, of the dataset that a folder, a name or a number means.

    A folder also sets the environment variable nnUNet_raw or nnUNet_preprocessed that is not set yet.

    Raises:
        InputError: no such dataset, the folder lies elsewhere, or nnU-Net's environment variables are not set.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        path = path.resolve()
        variable = RAW if (path / "imagesTr").is_dir() else PREPROCESSED
        place = os.environ.setdefault(variable, str(path.parent))
        if Path(place).resolve() != path.parent:
            raise InputError(f"{path}: {variable} is {place}; a folder in it expected")
        dataset = path.name
    raise_problems(
        [f"{name} is not set: nnU-Net's folder expected" for name in (RAW, PREPROCESSED) if name not in os.environ],
        "nnU-Net's environment variables:",
    )
    raw = Path(os.environ[RAW])
    number = f"Dataset{int(dataset):03d}_" if dataset.isdecimal() else None
    found = [one.name for one in sorted(raw.glob("Dataset[0-9][0-9][0-9]_*")) if one.is_dir()]
    matches = [one for one in found if one == dataset or (number and one.startswith(number))]
    if len(matches) != 1:
        raise InputError(f"{dataset}: one dataset of {raw} expected, by folder, name or number: {', '.join(found)}")
    return matches[0]


def _network(arch_kwargs: Mapping[str, Any], input_channels: int, output_channels: int) -> E2ENet:
    """The network for the strides and channels that nnU-Net's planner tries; it has no memory."""
    tried = {name: arch_kwargs[name] for name in ("n_stages", "features_per_stage", "strides")}
    strides = [[int(step) for step in stride] for stride in tried["strides"]]
    features = [int(count) for count in tried["features_per_stage"]]
    if tried["n_stages"] < 2:
        raise InputError("the images are too small to be halved even once: 8 voxels along an axis at least expected")
    arguments = e2enet_arguments(tried | {"strides": strides, "features_per_stage": features})
    with torch.device("meta"):
        return E2ENet(input_channels, output_channels, **arguments)
