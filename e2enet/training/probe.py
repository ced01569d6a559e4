"""A trial step before training: its time and memory and, on a GPU, the largest batch that fits.

It trains copies of the network and the loss, with a separate optimizer, on patches of noise. The random generators are
restored afterwards, so a run is the same with and without it.
"""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import read_json, write_json
from e2enet.network.recompute import run_once
from e2enet.system.memory import available_memory, forget_peak, is_out_of_memory, limited_memory, resident_peak
from e2enet.system.workload import gigabytes
from e2enet.training.dsff_callback import mask_callbacks
from e2enet.training.module import SegmentationModule

FILE = "probe.json"
STEPS = 2  # the first creates the optimizer's state and loads compiled code; the second is timed
MAX_SHARE_OF_FREE = 0.9  # of the free memory: other programs may take some meanwhile
LARGEST_TRIED = 1024
LONG_TRIAL = 3.0  # seconds of a step on a CPU after which no larger batch is tried


@dataclass(frozen=True)
class Probe:
    """Time and memory of a training step.

    Attributes:
        device: "cpu", "cuda:0"
        batch_size: Patches in this process.
        seconds: Of one batch: forward, backward and an optimizer step.
        peak_bytes: On a GPU the most that torch has reserved on it, else the most that the process has held.
        free_bytes: Free memory before the step.
        largest_batch: The largest batch whose step fits; None on a CPU, where it is not searched.
    """

    device: str
    batch_size: int
    seconds: float
    peak_bytes: int
    free_bytes: int
    largest_batch: int | None = None


def probe_step(trainer: pl.Trainer, module: SegmentationModule) -> Probe:
    """Try a step, print its time and memory, and write them to probe.json in the run folder.

    Raises:
        InputError: the step does not fit into memory. The message names a batch that fits (on a GPU the largest), or
            what to change.
    """
    device, batch_size = trainer.strategy.root_device, module.plan.batch_size
    with isolate_rng():
        probe = _try_step(trainer, module, batch_size)
        if probe is None:
            raise InputError(_too_large(module, device, _fitting(trainer, module)))
        if device.type == "cuda":
            largest = largest_from(batch_size, lambda size: _try_step(trainer, module, size) is not None)
            probe = Probe(**asdict(probe) | {"largest_batch": largest})
    file = Path(trainer.default_root_dir) / FILE
    chosen = {"engine": kept["engine"]} if "engine" in (kept := read_probe(file)) else {}
    write_json(file, asdict(probe) | chosen)
    say(_in_words(probe, module))
    return probe


def read_probe(file: Path) -> dict[str, Any]:
    """Return what was written to a run's probe.json; nothing if there is no file, or one that was damaged."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fitting(trainer: pl.Trainer, module: SegmentationModule) -> int:
    """Return a smaller batch that fits (0 if none does): on a GPU the largest, on a CPU one found quickly."""
    if trainer.strategy.root_device.type == "cuda":
        return largest_between(0, module.plan.batch_size, lambda size: _try_step(trainer, module, size) is not None)
    fitting = 0
    while (size := max(1, 2 * fitting)) < module.plan.batch_size:
        probe = _try_step(trainer, module, size)
        if probe is None:
            break
        fitting = size
        if probe.seconds > LONG_TRIAL:
            break
    return fitting


def largest_from(size: int, fits: Callable[[int], bool]) -> int:
    """Return the largest size that fits, given that `size` fits: double it while it fits, then bisect."""
    while size < LARGEST_TRIED:
        if not fits(2 * size):
            return largest_between(size, 2 * size, fits)
        size *= 2
    return size


def largest_between(fitting: int, too_large: int, fits: Callable[[int], bool]) -> int:
    """Return the largest size that fits, by bisection from `fitting` (or 0) to below `too_large`."""
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def _try_step(trainer: pl.Trainer, module: SegmentationModule, batch_size: int) -> Probe | None:
    """Measure a step of a batch; None if it does not fit."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    try:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            seconds = _seconds_of_step(trainer, module, batch_size)
            peak = torch.cuda.max_memory_reserved(device)
        else:
            forget_peak()
            with limited_memory(int(MAX_SHARE_OF_FREE * free)):
                seconds = _seconds_of_step(trainer, module, batch_size)
            peak = resident_peak()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    return Probe(str(device), batch_size, seconds, peak, free)


def _seconds_of_step(trainer: pl.Trainer, module: SegmentationModule, batch_size: int) -> float:
    """Time the last of `STEPS` steps on patches of noise."""
    device = trainer.strategy.root_device
    network, loss = copy.deepcopy(module.network).to(device).train(), copy.deepcopy(module.loss).to(device)
    optimizer = instantiate(module.training_config["optimizer"], params=network.parameters())
    patch_size, channels = module.plan.patch_size, len(module.hparams["dataset"]["channels"])
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch_size, channels, *patch_size, generator=generator).to(device)
    label = torch.randint(len(module.scheme.names), (batch_size, *patch_size), generator=generator).to(device)

    with trainer.precision_plugin.train_step_context():
        run = module.training_pass(network)
        dense = module.dense_pass(network) if _grows_by_gradient(trainer) else None

    def forward_and_backward(run: Callable[[Tensor], Any] = run) -> Tensor:
        optimizer.zero_grad()
        with trainer.precision_plugin.train_step_context():
            output = run(image)
            value: Tensor = loss([output] if isinstance(output, Tensor) else output, label)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), trainer.gradient_clip_val or math.inf)
        return value

    seconds = 0.0
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.step(forward_and_backward)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    if dense is not None:  # taken in some steps, which may need more memory
        forward_and_backward(dense)
    return seconds


def _grows_by_gradient(trainer: pl.Trainer) -> bool:
    return any(own.dsff.updates and own.dsff.growth == "gradient" for own in mask_callbacks(trainer))


def _in_words(probe: Probe, module: SegmentationModule) -> str:
    patch = " x ".join(map(str, module.plan.patch_size))
    largest = "" if probe.largest_batch is None else f"; the largest batch that fits is {probe.largest_batch}"
    return (
        f"a step of {probe.batch_size} patches of {patch} on {probe.device}: {probe.seconds:.3f} s, "
        f"{gigabytes(probe.peak_bytes)} of memory in all ({gigabytes(probe.free_bytes)} were free before){largest}"
    )


def _too_large(module: SegmentationModule, device: torch.device, fitting: int) -> str:
    batch_size, patch = module.plan.batch_size, " x ".join(map(str, module.plan.patch_size))
    problem = f"plan.batch_size={batch_size}: memory of {device} runs out in a step of so many patches of {patch}; "
    if fitting:
        accumulate = math.ceil(batch_size / fitting)
        if accumulate > module.training_config["steps_per_epoch"]:  # a step cannot span epochs
            return f"{problem}expected a smaller one: plan.batch_size={fitting} fits"
        return problem + (
            f"expected a smaller one: plan.batch_size={fitting} fits (training.accumulate="
            f"{accumulate} then makes an optimizer step of as many patches)"
        )
    precision = ", training.precision=16-mixed" if device.type == "cuda" else ""
    keeps = getattr(module.network, "run_part", None) is run_once
    recomputed = ", training.checkpoint_activations=true" if keeps else ""
    smaller = "a smaller plan.patch_size or network.base_features"
    return f"{problem}not even one fits: expected {smaller}{precision}{recomputed}"
