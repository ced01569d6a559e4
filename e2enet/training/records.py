"""Records in a run folder: the resolved config, software and machine, the network's cost and connections."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from e2enet.common.configs import ROOT, as_plain
from e2enet.common.files import atomic_path, write_json
from e2enet.network import dsff
from e2enet.network.connections import connections
from e2enet.network.cost import count_cost

PACKAGES = (
    "e2enet",
    "torch",
    "lightning",
    "hydra-core",
    "torchio",
    "torchmetrics",
    "monai",
    "nibabel",
    "numpy",
    "simpleitk",
    "wandb",
)


def write_config(path: Path, config: DictConfig | dict[str, Any]) -> None:
    """Write the config with every interpolation resolved, so that it means the same anywhere."""
    with atomic_path(path) as temporary:
        OmegaConf.save(OmegaConf.create(as_plain(config)), temporary)


def write_versions(path: Path) -> None:
    """Write package versions, the git commit (null outside a checkout) and the machine."""
    write_json(
        path,
        {
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git": {"commit": _git("rev-parse", "HEAD"), "changed_files": _git("status", "--porcelain")},
            "machine": machine(),
        },
    )


def machine() -> dict[str, Any]:
    """Describe the machine of this process: system, processor, cores, torch threads, GPUs."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def write_cost(path: Path, network: nn.Module, patch_size: Sequence[int]) -> dict[str, Any]:
    """Write and return the parameters and the FLOPs of one patch, by both conventions, with the current masks."""
    content: dict[str, Any] = {"patch_size": list(patch_size), "density": dsff.density(network)}
    for convention in ("exact", "paper"):
        cost = count_cost(network, patch_size, convention)
        content[convention] = {"params": cost.params, "flops": cost.flops}
    write_json(path, content)
    return content


def write_connections(path: Path, network: nn.Module) -> None:
    """Write the active kernels per fusion layer and flow, with their grid node, for the current masks."""
    write_json(path, [asdict(connection) for connection in connections(network)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name; on Linux from /proc, since Python knows only the architecture there."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "") or (
        platform.processor()
    )


def _git(*arguments: str) -> Any:
    """Return the output of a git command (for `status` its number of lines); None outside a checkout."""
    if not (ROOT / ".git").exists():  # an installed package may lie in another project's checkout
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return len(result.stdout.splitlines()) if arguments[0] == "status" else result.stdout.strip()
