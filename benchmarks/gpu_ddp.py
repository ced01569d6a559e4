"""One process of DistributedDataParallel, on NCCL where there is a GPU, around and above the fused network.

Its gradients must be those of the fused network alone, bit for bit, and those of the plain network up to rounding.
Some steps with DSFF then exchange scores and compare masks through the process group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_loop import loss_of, make_batch
from benchmarks.gpu_networks import exact_float32, make_contender
from benchmarks.gpu_options import DENSITY, Work
from benchmarks.gpu_parity import relative_errors
from benchmarks.gpu_report import Report
from e2enet.network import DSFF
from e2enet.system.determinism import set_torch_flags

MOST_ERROR = 1e-3  # in float32; of each gradient, as a share of its largest value


class Above(nn.Module):
    """A module whose forward pass runs the fused network, as a training module does."""

    def __init__(self, run: nn.Module) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return loss_of(self.run(x), label)


def run(work: Work, report: Report) -> None:
    """Tell whether the gradients are the same, and train some steps."""
    set_torch_flags("warn", "gpu" if work.on_gpu else "cpu")
    exact_float32()
    x, label = make_batch(work, seed=0)
    plain, _ = make_contender("plain", work.sizes.network, work.device)
    network, fused = make_contender("fused", work.sizes.network, work.device)
    wanted = gradients(plain, loss_of(plain(x), label))
    alone = gradients(network, loss_of(fused(x), label))
    backend = "nccl" if work.on_gpu else "gloo"
    with process_group(backend):
        for name in ("around", "above"):
            parallel = DistributedDataParallel(fused if name == "around" else Above(fused))
            found = gradients(network, loss_of(parallel(x), label) if name == "around" else parallel(x, label))
            same = all(torch.equal(own, alone[name]) for name, own in found.items()) and found.keys() == alone.keys()
            told = "the same bits" if same else "other bits"
            what = f"{backend}, DistributedDataParallel {name} the fused network"
            report.require(f"{what}, against fused alone", told, "the same bits", held=same)
            error = max(relative_errors(own, wanted[name])[0] for name, own in found.items())
            report.require(f"{what}, against plain", f"{error:.1e}", f"at most {MOST_ERROR}", held=error <= MOST_ERROR)
            report.keep(name, {"same_as_fused": same, "error_against_plain": error})
        losses = train(network, parallel, work)
    told = f"{losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"
    report.require("DSFF in the process group: loss", told, "a fall", held=losses[-1] < losses[0])
    report.keep("losses", losses)


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the parameters' gradients of a loss by name, and forget them."""
    loss.backward()
    found = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def train(network: Any, run: Any, work: Work) -> list[float]:
    """Return the losses of steps on one batch with masks that are updated at every second of them."""
    x, label = make_batch(work, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    losses = []
    with DSFF(DENSITY, update_every=2, growth="gradient").attach(network, optimizer, total_steps=6) as masks:
        for _ in range(6):
            loss = run(x, label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if masks.num_updates != 2:
            raise RuntimeError(f"{masks.num_updates} updates of the masks in 6 steps; expected 2")
    return losses


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Join a process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        distributed.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()
