"""Lightning data modules: one per kind of dataset, all of them the same machinery behind another source.

A source says where the raw dataset lies, how it is read and, for the phantom, how it comes to be.
Everything else (plan, prepared cases, split, loaders) is `SegmentationDataModule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import lightning
import torch
from torch.utils.data import DataLoader

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.augmentation.recipe import AUGMENTATIONS, build_augmentation
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.planning.plan import Plan, plan_dataset
from e2enet.data.preparation.store import PreparedCase, prepare_cases
from e2enet.data.sampling import CaseDataset, EpochSampler, PatchDataset
from e2enet.data.sources import DataSource
from e2enet.data.splits import NUM_FOLDS, five_fold

PLAN_KEYS = ("kind", "spacing", "patch_size", "strides", "batch_size", "memory_gb")


class DataOptions(TypedDict, total=False):
    """Keyword arguments that every data module shares; see SegmentationDataModule."""

    fold: int | Literal["all"]
    seed: int
    plan: Mapping[str, Any]
    mirror_axes: Sequence[int]
    augmentation: str
    steps_per_epoch: int
    num_workers: int
    limit_cases: int | None


class SegmentationDataModule(lightning.LightningDataModule):
    """Patches for training and whole prepared cases for validation.

    `prepare_data` (one process) creates the phantom where asked, plans and prepares cases; `setup` finds
    all of it finished. After `setup` the attributes `dataset` (RawDataset), `plan` (Plan), `train_cases`,
    `val_cases` (raw Cases) and `mirror_axes` are there. Training batches: {"image": float32 (B, C, D, H,
    W), "label": int64 (B, D, H, W), "case": list of ids}, drawn as `PatchDataset` describes. Validation
    batches: the same for one whole case at the plan's spacing.

    Args:
        source: Where the raw dataset comes from.
        prepared_root: Folder of all prepared datasets; this one takes the subfolder named like its raw
            folder.
        fold: 0..4 of nnU-Net's five-fold split, or "all": train and validate on every training case.
        seed: Decides every sample together with its epoch and index.
        plan: Keywords of `plan_dataset`: kind, spacing, patch_size, strides, batch_size, memory_gb; those
            left out are planned.
        mirror_axes: Axes (0 = D, 1 = H, 2 = W) along which a mirrored image is still one of this dataset.
        augmentation: "nnunet", "mirror" or "none".
        steps_per_epoch: Training batches per epoch and process.
        num_workers: Worker processes of the training loader.
        limit_cases: Keep only the first so many training cases (sorted by id) of the fold. The split itself
            is made of all cases, so the validation cases stay those of the fold and scores stay comparable.

    Raises:
        InputError: from the constructor for impossible values, all at once; later for a dataset that cannot
            be used.
    """

    plan: Plan
    dataset: RawDataset
    train_cases: list[Case]
    val_cases: list[Case]

    def __init__(
        self,
        source: DataSource,
        *,
        prepared_root: str | Path,
        fold: int | Literal["all"] = 0,
        seed: int = 0,
        plan: Mapping[str, Any] | None = None,
        mirror_axes: Sequence[int] = (0, 1, 2),
        augmentation: str = "nnunet",
        steps_per_epoch: int = 250,
        num_workers: int = 2,
        limit_cases: int | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.prepared_root = Path(prepared_root)
        self.fold = fold
        self.seed = seed
        self.plan_options = dict(plan or {})
        self.mirror_axes = tuple(int(axis) for axis in mirror_axes)
        self.augmentation = augmentation
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.limit_cases = limit_cases
        raise_problems(self._find_problems(), "The data configuration cannot be used:")
        self._prepared: tuple[list[PreparedCase], list[PreparedCase]] | None = None

    def prepare_data(self) -> None:
        """Create the raw data where the source can, then plan and prepare what is not yet on disk."""
        self.source.create()
        self._prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read dataset, plan and split, and reuse the prepared cases (made here if they are missing)."""
        if self._prepared is None:
            self._prepare()

    def train_dataloader(self) -> DataLoader:
        """Batches of augmented patches, `steps_per_epoch` of them."""
        dataset = PatchDataset(
            self._prepared_cases()[0],
            self.plan.patch_size,
            batch_size=self.plan.batch_size,
            augmentation=build_augmentation(self.plan.patch_size, self.mirror_axes, self.augmentation),
            seed=self.seed,
        )
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(self.steps_per_epoch, self.plan.batch_size, rank=rank, world_size=world_size)
        return DataLoader(
            dataset,
            batch_size=self.plan.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=limit_worker_threads,
        )

    def val_dataloader(self) -> DataLoader:
        """Whole prepared validation cases, one per batch, read from the memory map in this process."""
        return DataLoader(CaseDataset(self._prepared_cases()[1]), batch_size=1)

    def _find_problems(self) -> list[str]:
        problems = []
        if self.fold != "all" and self.fold not in range(NUM_FOLDS):
            problems.append(f"fold={self.fold!r} must be 0 to {NUM_FOLDS - 1} or 'all'")
        if unknown := sorted(set(self.plan_options) - set(PLAN_KEYS)):
            problems.append(f"plan has unknown keys {unknown}; known are {list(PLAN_KEYS)}")
        if self.augmentation not in AUGMENTATIONS:
            problems.append(f"augmentation={self.augmentation!r} must be one of {', '.join(AUGMENTATIONS)}")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) < len(self.mirror_axes):
            problems.append(f"mirror_axes={list(self.mirror_axes)} must be different axes out of 0, 1, 2 (D, H, W)")
        for name, least in (("seed", 0), ("steps_per_epoch", 1), ("num_workers", 0), ("limit_cases", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                problems.append(f"{name}={value} must be at least {least}")
        return problems

    def _prepare(self) -> None:
        self.dataset = self.source.read()
        self.train_cases, self.val_cases = self._split(self.dataset.training)
        folder = self.prepared_root / self.source.folder.name
        self.plan = plan_dataset(self.dataset, folder, **self.plan_options)
        needed = {case.id: case for case in (*self.train_cases, *self.val_cases)}
        prepared = {case.id: case for case in prepare_cases(self.dataset, list(needed.values()), self.plan, folder)}
        self._prepared = (
            [prepared[case.id] for case in self.train_cases],
            [prepared[case.id] for case in self.val_cases],
        )

    def _split(self, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
        by_id = {case.id: case for case in cases}
        if self.fold == "all":
            train_ids = val_ids = sorted(by_id)
        else:
            train_ids, val_ids = five_fold(list(by_id), self.fold)
        if self.limit_cases is not None:
            if self.limit_cases > len(train_ids):
                raise InputError(
                    f"limit_cases={self.limit_cases}, but fold {self.fold} of {self.source.folder} has "
                    f"{len(train_ids)} training cases"
                )
            train_ids = sorted(train_ids)[: self.limit_cases]
        return [by_id[name] for name in train_ids], [by_id[name] for name in val_ids]

    def _prepared_cases(self) -> tuple[list[PreparedCase], list[PreparedCase]]:
        if self._prepared is None:
            raise RuntimeError("call setup() before asking for a data loader")
        return self._prepared


def limit_worker_threads(worker: int) -> None:
    """One thread per worker process: torch and ITK would each use every core in each of them."""
    import SimpleITK

    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
