"""Measure one trained network in this process: python -m e2enet.report.measure_network CHECKPOINT latency|memory ..

`latency` is the median time in seconds of a forward pass of one patch in eval mode, after two that are not counted.
`memory` is the peak in bytes of two training steps with the run's batch size, including weights, gradients and
optimizer state. On a GPU it is the memory that torch's allocator gave out, on a CPU the growth of the process. The last
line printed is JSON.
`e2enet.report.measure` calls this for the networks of a sweep, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from e2enet.common.errors import exit_on_input_error
from e2enet.inference.checkpoint import LoadedModel, checkpoint_file, load_model, read_hyper_parameters
from e2enet.inference.run import AMP_TYPES, resolve_device
from e2enet.network import E2ENet
from e2enet.network.build import trust_network
from e2enet.network.dead_kernels import hold_masks
from e2enet.network.dsff import fusion_layers
from e2enet.network.engine import select_training, select_validation
from e2enet.network.recompute import checkpoint_activations
from e2enet.report.measure import parse_measuring
from e2enet.system.memory import keep_freed_memory, resident, resident_peak
from e2enet.training.engine_choice import chosen_engine
from e2enet.training.final import PRECISIONS
from e2enet.training.losses import DeepSupervisionLoss, DiceCrossEntropy, build_loss
from e2enet.training.records import machine

UNCOUNTED = 2
STEPS = 2  # the first creates the optimizer's state, the second holds it together with its activations


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the checkpoint named on the command line and print the figure as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m e2enet.report.measure_network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint, or a run folder (its best)")
    parser.add_argument("figure", choices=("latency", "memory"))
    options = parse_measuring(parser, arguments)
    keep_freed_memory()
    device = resolve_device(options.device)
    path = checkpoint_file(options.checkpoint)
    if options.figure == "latency":
        figures = {"latency_s": latency(path, device, options.repeats), "repeats": options.repeats}
    else:
        figures = {"peak_bytes": training_peak(path, device)}
    print(json.dumps({**figures, "device": str(device), "machine": machine()}))


def latency(checkpoint: Path, device: torch.device, repeats: int) -> float:
    """Return the median seconds of a forward pass: one patch, batch 1, eval mode, the run's precision and engine."""
    model = _own_model(checkpoint)
    training = read_hyper_parameters(checkpoint)["training"]
    engine, dtype = chosen_engine(training, checkpoint.parent.parent, device), amp_dtype(training, device)
    network = select_validation(model.network.to(device), engine, amp_dtype=dtype)
    patch = torch.randn(1, len(model.channels), *model.plan.patch_size, device=device)
    precision = autocast(training, device)

    def forward() -> None:
        with torch.inference_mode(), precision():
            network(patch)

    return median_seconds(forward, repeats, device)


def median_seconds(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Return the median seconds of `repeats` calls, after two that are not counted; a GPU finishes each call."""
    seconds = []
    for _ in range(UNCOUNTED + repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[UNCOUNTED:])


def _own_model(checkpoint: Path) -> LoadedModel:
    """Load the model of a run of the user's own, so the network class that its config names is trusted."""
    trust_network(str(read_hyper_parameters(checkpoint)["network"].get("_target_", "")))
    return load_model(checkpoint)


def training_peak(checkpoint: Path, device: torch.device) -> int:
    """Return the peak bytes of two training steps with the run's batch, loss, optimizer and precision."""
    _warm_up()
    start = resident()
    model = _own_model(checkpoint)
    settings = read_hyper_parameters(checkpoint)
    training = settings["training"]
    network = model.network.to(device).train()
    if training.get("checkpoint_activations", False):
        checkpoint_activations(network)
    loss = build_loss(training["loss"], model.scheme).to(device)
    optimizer = instantiate(training["optimizer"], params=network.parameters())
    precision = autocast(training, device)
    batch_size, patch_size = model.plan.batch_size, model.plan.patch_size
    image = torch.randn(batch_size, len(model.channels), *patch_size, device=device)
    target = torch.randint(len(model.scheme.names), (batch_size, *patch_size), device=device)
    engine = chosen_engine(training, checkpoint.parent.parent, device)
    run = select_training(network, engine, amp_dtype=amp_dtype(training, device))
    for _ in range(STEPS):
        with precision():
            value = _loss(run, loss, image, target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training["clip_norm"] or float("inf"))
        optimizer.step()
        if fusion_layers(network):
            hold_masks(network, optimizer)
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else max(0, resident_peak() - start)


def autocast(training: Mapping[str, Any], device: torch.device) -> Callable[[], torch.autocast]:
    """Autocast of the run's precision."""
    dtype = amp_dtype(training, device)
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def amp_dtype(training: Mapping[str, Any], device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of the run's precision, None for float32; a CPU measures float16 runs in float32."""
    dtype = AMP_TYPES[PRECISIONS[str(training["precision"])]]
    return None if dtype == torch.float16 and device.type == "cpu" else dtype


def _loss(run: Callable[[torch.Tensor], Any], loss: Any, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    output = run(image)
    return loss([output] if isinstance(output, torch.Tensor) else output, target)


def _warm_up() -> None:
    """Run forward and backward of a tiny network, so that libraries are loaded before memory is first read."""
    network = E2ENet(1, 2, [(1, 2, 2)], base_features=2)
    loss = DeepSupervisionLoss(DiceCrossEntropy())
    _loss(network, loss, torch.randn(1, 1, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.long)).backward()


if __name__ == "__main__":
    main()
