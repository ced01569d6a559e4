"""Subprocess side of `benchmarks.loader`: write cases, load batches, measure time and memory."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

MANY_CASES = 200
HEADS = [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]  # reduction factors of the heads' targets
LABELS = 16
WARM_UP = 10  # batches: longer than every loader's queue
DEVICE_BATCHES = 20


def write_cases(options: argparse.Namespace) -> None:
    """Write noisy cases with one ellipsoid per label, prepared as `e2enet.data.preparation.store` does."""
    from e2enet.data.preparation.foreground import sample_coordinates

    axes = np.ogrid[tuple(slice(size) for size in options.shape)]
    for number in range(options.cases):
        rng = np.random.default_rng(number)
        label = np.zeros(options.shape, np.uint8)
        for value in range(1, LABELS):
            centre, radius = rng.uniform(0.2, 0.8, 3) * options.shape, rng.uniform(0.08, 0.18, 3) * options.shape
            distance = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radius, strict=True))
            label[distance < 1] = value
        image = rng.normal(0, 0.3, (1, *options.shape)).astype(np.float32) + label * np.float32(0.2)
        stem = options.folder / f"case{number:03d}"
        np.save(f"{stem}.image.npy", image)
        np.save(f"{stem}.label.npy", label)
        np.savez(f"{stem}.foreground.npz", **{str(v): rows for v, rows in sample_coordinates(label).items()})  # type: ignore[arg-type]


def find_cases(options: argparse.Namespace, count: int) -> list[Any]:
    """Return `count` prepared cases; cases beyond the written ones are links to the same files under other names."""
    from e2enet.data.preparation.store import PreparedCase

    for number in range(options.cases, count):
        for kind in ("image.npy", "label.npy", "foreground.npz"):
            link = options.folder / f"case{number:03d}.{kind}"
            if not link.exists():
                os.link(options.folder / f"case{number % options.cases:03d}.{kind}", link)
    stems = [str(options.folder / f"case{number:03d}") for number in range(count)]
    shape = tuple(options.shape)
    return [PreparedCase(Path(s).name, Path(f"{s}.image.npy"), Path(f"{s}.label.npy"), shape) for s in stems]


def forget_pages(folder: Path) -> None:
    """Drop the files from the page cache, as after a restart of the machine."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("case*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_loader(options: argparse.Namespace, batches: int, cases: int) -> Any:
    from e2enet.data.augmentation.recipe import build_augmentation
    from e2enet.data.loaders.loading import patch_loader
    from e2enet.data.loaders.sampling import EpochSampler, PatchDataset

    dataset = PatchDataset(
        find_cases(options, cases), options.patch, batch_size=2, seed=0, augment_here=options.augment_on == "worker",
        augmentation=build_augmentation(options.patch, (0, 1, 2)),
    )  # fmt: skip
    return patch_loader(dataset, EpochSampler(batches, 2), num_workers=1)


def measure_speed(options: argparse.Namespace) -> dict[str, float]:
    """Measure seconds per patch: between arrivals, of the worker's CPU, of the targets and of the device."""
    import torch

    torch.set_num_threads(1)
    loader = make_loader(options, WARM_UP + options.batches, options.cases)
    batches = iter(loader)
    for _ in range(WARM_UP):
        next(batches)
    (worker,) = multiprocessing.active_children()
    start, cpu_start = time.perf_counter(), cpu_seconds(worker.pid)
    kept: list[dict[str, Any]] = []
    for batch in batches:
        kept = [*kept, batch][-DEVICE_BATCHES:]
    patches = 2 * options.batches
    figures = {"wall": (time.perf_counter() - start) / patches, "cpu": (cpu_seconds(worker.pid) - cpu_start) / patches}
    return figures | measure_device(loader.dataset.augmentation, kept)


def measure_device(augmentation: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """Measure seconds per patch of the work after the transfer, on a GPU if there is one."""
    import torch

    from e2enet.training.losses import reduce_target

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = {"targets": 0.0, "device": 0.0}
    for batch in batches:
        if "draw" in batch:
            images, labels = ([part.to(device) for part in batch[key]] for key in ("image", "label"))
            start = now(device)
            _, label = augmentation.apply(images, labels, batch["draw"])
            seconds["device"] += now(device) - start
        else:
            label = batch["label"].to(device)
        start = now(device)
        label = label.long()
        for factors in HEADS:
            reduce_target(label, [size // factor for size, factor in zip(label.shape[1:], factors, strict=True)])
        seconds["targets"] += now(device) - start
    return {key: value / (2 * len(batches)) for key, value in seconds.items()}


def now(device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_memory(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure median and largest proportional set size (MiB) of the worker by first, middle and last fifth of batches.

    Single readings would depend on the boxes in use at that moment: a patch needs 8 MB, a rotated one up to 80.
    """
    total = options.memory_batches
    sizes = []
    for number, _ in enumerate(make_loader(options, total + WARM_UP, MANY_CASES)):
        (worker,) = multiprocessing.active_children()
        text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
        (size,) = (line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))
        sizes.append(int(size) / 1024)
        if number + 1 == total:
            break
    fifths = np.array_split(np.array(sizes), 5)[::2]
    return {"median": [float(np.median(part)) for part in fifths], "largest": [float(part.max()) for part in fifths]}


def start_cases(options: argparse.Namespace) -> dict[str, float]:
    next(iter(make_loader(options, 1, MANY_CASES)))
    return {}


def start_module(options: argparse.Namespace) -> dict[str, float]:
    from e2enet.data.datamodule import SegmentationDataModule
    from e2enet.data.layouts.phantom import PhantomLayout

    module = SegmentationDataModule(
        layout=PhantomLayout(num_train=MANY_CASES, num_test=0, shape=(48, 48, 20)), name="phantom",
        root=options.folder / "raw", prepared_root=options.folder / "prepared", fold="all", num_workers=1,
        steps_per_epoch=1,
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    next(iter(module.train_dataloader()))
    return {}


WORKERS = {
    "speed": measure_speed,
    "memory": measure_memory,
    "start-cases": start_cases,
    "start-module": start_module,
}
