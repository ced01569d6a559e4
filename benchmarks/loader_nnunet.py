"""nnU-Net's side of `benchmarks.loader`, for an interpreter with nnunetv2 2.8 and without this package.

Reads the cases FOLDER/*.image.npy, writes them to FOLDER/nnunet in nnU-Net's own preprocessed format, and prints
seconds per patch as JSON. One worker process of one thread, as nnU-Net starts it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from benchmarks.loader_work import WARM_UP, cpu_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--patch", nargs=3, type=int, default=[64, 160, 160])
    parser.add_argument("--heads", type=json.loads, default=[[1, 1, 1]])
    parser.add_argument("--labels", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepared = options.folder / "nnunet"
    write_cases(options, prepared)
    batches = NonDetMultiThreadedAugmenter(make_loader(options, prepared), None, 1, num_cached=6, wait_time=0.002)
    for _ in range(WARM_UP):
        next(batches)
    (worker,) = multiprocessing.active_children()
    start, cpu_start = time.perf_counter(), cpu_seconds(worker.pid)
    for _ in range(options.batches):
        next(batches)
    patches = 2 * options.batches
    wall, cpu = (time.perf_counter() - start) / patches, (cpu_seconds(worker.pid) - cpu_start) / patches
    batches._finish()
    print(json.dumps({"wall": wall, "cpu": cpu, "targets": 0.0, "device": 0.0}), flush=True)


def write_cases(options: argparse.Namespace, prepared: Path) -> None:
    """Save the cases as nnU-Net's preprocessing does, with class locations, unless they exist."""
    prepared.mkdir(exist_ok=True)
    for path in sorted(options.folder.glob("*.image.npy")):
        name = path.name.removesuffix(".image.npy")
        if path.stat().st_nlink > 1 or (prepared / f"{name}.pkl").exists():
            continue  # a link to another case, or done in an earlier run
        image = np.load(path)
        label = np.load(path.with_name(f"{name}.label.npy"))[None].astype(np.int16)
        locations = DefaultPreprocessor._sample_foreground_locations(label, list(range(1, options.labels)))
        blocks, chunks = comp_blosc2_params(image.shape, options.patch, image.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(label.shape, options.patch, label.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, label, {"class_locations": locations}, str(prepared / name),
            chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg,
        )  # fmt: skip


def make_loader(options: argparse.Namespace, prepared: Path) -> nnUNetDataLoader:
    """Return the training loader that nnUNetTrainer makes for a 3D configuration."""
    angle = 30 / 360 * 2 * np.pi
    rotation = (-angle, angle)
    foreground = tuple(range(1, options.labels))
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size=options.patch,
        rotation_for_DA=rotation,
        deep_supervision_scales=[[1 / factor for factor in head] for head in options.heads],
        mirror_axes=(0, 1, 2),
        do_dummy_2d_data_aug=False,
        use_mask_for_norm=[False],
        foreground_labels=foreground,
    )
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(prepared)),
        2,
        get_patch_size(options.patch, rotation, rotation, rotation, (0.85, 1.25)),
        options.patch,
        LabelManager({"background": 0} | {f"label{value}": value for value in foreground}, None),
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )


if __name__ == "__main__":
    main()
