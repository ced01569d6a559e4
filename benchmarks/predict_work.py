"""This package's side of `benchmarks.predict`, in processes of its own: predict a scan, or a part of a volume."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import peak_bytes
from benchmarks.prepare_work import CT, Work

CLASSES = 16
STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
SCANS = {
    "as-is": Work((400, 512, 512), (1.0, 0.8, 0.8), (1.0, 0.8, 0.8), CLASSES, CT),
    "resampled": Work((400, 512, 512), (1.0, 0.8, 0.8), (1.5, 1.0, 1.0), CLASSES, CT),
}


class Stopwatch(nn.Module):
    """Call a network and sum the seconds that it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.cpu_inside, self.inside = network, 0.0, 0.0

    def forward(self, windows: Tensor) -> Tensor:
        cpu, wall = cpu_seconds(), time.perf_counter()
        logits = self.network(windows)
        self.cpu_inside += cpu_seconds() - cpu
        self.inside += time.perf_counter() - wall
        return logits

    def figures(self, cpu: float, wall: float) -> dict[str, float]:
        """Return the time outside the network since these clock readings, the time inside, and the peak."""
        return {
            "cpu": cpu_seconds() - cpu - self.cpu_inside,
            "wall": time.perf_counter() - wall - self.inside,
            "network": self.inside,
            "peak": peak_bytes(),
        }


def cpu_seconds() -> float:
    """Return the user and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def predict_scan(work: dict[str, Any]) -> dict[str, float]:
    """Predict the scan as e2enet predict does after reading the checkpoint."""
    from e2enet.data.formats.naming import Case
    from e2enet.data.formats.scheme import LabelScheme
    from e2enet.data.planning.plan import Plan
    from e2enet.inference.checkpoint import LoadedModel
    from e2enet.inference.finished import file_digest
    from e2enet.inference.predictor import WindowSettings, predict_cases
    from e2enet.system.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    folder, patch = Path(work["folder"]), tuple(work["patch"])
    plan = Plan(2, tuple(work["spacing"]), patch, tuple(STRIDES), 2, (work["ct"],), patch)
    network = Stopwatch(trivial_network(work["classes"]))
    labels = {value: f"organ {value}" for value in range(work["classes"])}
    checkpoint = folder / "trivial.ckpt"
    torch.save(network.state_dict(), checkpoint)  # results are identified by its content
    model = LoadedModel(checkpoint, network, plan, LabelScheme(labels), ("CT",), (), ".nii.gz", file_digest(checkpoint))
    case = Case("case", (folder / "images" / "case_0000.nii.gz",))
    cpu, wall = cpu_seconds(), time.perf_counter()
    failures = predict_cases([model], [case], folder / "ours", WindowSettings(), overwrite=True)
    if failures:
        raise SystemExit(str(failures))
    return network.figures(cpu, wall)


def trivial_network(num_classes: int) -> nn.Module:
    """Return a 1 x 1 x 1 convolution whose classes follow the intensity, so that labels form organs, not noise."""
    network = nn.Conv3d(1, num_classes, 1)
    # The lines c * x - c^2 / 2 of two classes cross half way between their levels c: the nearest level wins.
    levels = torch.linspace(-2, 2, num_classes)
    assert network.bias is not None
    with torch.no_grad():
        network.weight.copy_(8 * levels.view(-1, 1, 1, 1, 1))
        network.bias.copy_(-4 * levels.square())
    return network.eval()


def predict_part(work: dict[str, Any]) -> dict[str, float]:
    """Predict a part of a volume with E2ENet, without reading or resampling."""
    from e2enet.data.preparation.outputs import largest_class
    from e2enet.inference.sliding_window import predict_planes
    from e2enet.network import E2ENet
    from e2enet.system.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Stopwatch(E2ENet(1, work["classes"], [tuple(stride) for stride in work["strides"]]).eval())
    image = torch.randn(1, *work["shape"])
    with torch.inference_mode():
        network.network(torch.randn(1, 1, *work["patch"]))  # loops are compiled at their first use
    cpu, wall = cpu_seconds(), time.perf_counter()
    for plane in predict_planes([network], image, work["patch"]):
        largest_class(plane)
    return network.figures(cpu, wall)


MEASURES = {"scan": predict_scan, "networks": predict_part}
