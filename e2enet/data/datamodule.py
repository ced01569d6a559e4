"""The Lightning data module: a dataset in its layout, its plan, prepared cases, split and loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from torch.utils.data import DataLoader

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.augmentation.recipe import Augmentation, build_augmentation
from e2enet.data.cases.choice import CaseChoice, ChosenCases, read_chosen
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.split_file import RunSplit
from e2enet.data.cases.splits import SplitRule
from e2enet.data.checking.first_use import check_at_first_use, remembered_problems
from e2enet.data.formats.grid import Unit
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.layouts.layout import Layout
from e2enet.data.loaders.loading import memory_is_pinned, patch_loader
from e2enet.data.loaders.patch_sampler import PatchSampler
from e2enet.data.loaders.patches import frame_affine
from e2enet.data.loaders.sampling import CaseDataset, EpochSampler, PatchDataset
from e2enet.data.loaders.shared_memory import require_shared_memory
from e2enet.data.loaders.validation import PeriodicSampler, ValidationPatches
from e2enet.data.options import option_problems
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.foreground import ANNOTATED
from e2enet.data.preparation.store import PreparedCase


class SegmentationDataModule(lightning.LightningDataModule):
    """Training patches, validation patches and whole validation cases of one dataset.

    `prepare_data` runs in one process. It creates the phantom if asked, checks the dataset, plans and prepares the
    cases. `setup` reads the results. It sets the attributes `dataset` (RawDataset), `plan` (Plan), `train_cases`,
    `val_cases`, `test_cases` (raw Cases) and `folds` (number of folds of the split). `mirror_axes` is an attribute too.

    `training_step` gets batches {"image": float32 (B, C, D, H, W), "label": int64 (B, D, H, W), "case": list of ids},
    drawn as `PatchDataset` describes. The loader itself yields the input of `on_after_batch_transfer`. Validation
    batches have the same keys. They hold patches (`ValidationPatches`) or one whole case at the plan's spacing.

    In data-parallel training each process uses the plan's batch size. N processes together draw the same patches as one
    process with N times the batch size. Each validation patch and case is validated once.

    Args:
        layout: How the dataset is read and, for the phantom, generated.
        name: Name of the dataset; `layout.folder_name` gives its folder in `root`.
        root: Parent folder of raw datasets.
        prepared_root: Folder of all prepared datasets; this one uses the subfolder `source.prepared_name`.
        labels: Label (after `label_map`) -> name, background included; None: as the dataset's files say.
        label_map: Value in the label files -> label.
        regions: Name -> labels of the region; regions are scored in addition to the labels.
        regions_class_order: The label that each region is written as, in their order. If given, the network learns the
            regions.
        spacing_unit: Unit of the lengths in all files: "m", "mm" or "um"; None: as each header says.
        fold: 0..4 of nnU-Net's five-fold split, or "all": train and validate on every training case.
        split: "five_fold", "official", {"train": ids, "validation": ids} or a file; see `splits.split_dataset`.
        group: A regular expression. Ids with the same match of its first group stay in the same one of the five folds.
        exclude: Ids of cases that are left out; their problems are ignored.
        score_test: Whether labelled test cases are scored after training. If so, their problems are errors.
        seed: Determines every sample, together with its epoch and index.
        plan: Keywords of `plan_dataset`: kind, spacing, patch_size, strides, batch_size, memory_gb; those
            left out are planned.
        mirror_axes: Axes (0 = D, 1 = H, 2 = W) along which a mirrored image is still plausible for this dataset.
        augmentation: Augmentation of training patches: the config section `augmentation` in plain containers, or the
            name of a file of that group, such as "nnunet".
        augment_on: Where patches are augmented: in the "worker" that reads the patch, or on the training "device".
        sampler: Draws the case and the position of each training patch; None: a default `PatchSampler`.
        accumulate: Training batches per optimizer step.
        steps_per_epoch: Training batches per epoch and process.
        validation_patches: Number of validation patches; raised to one per case and to whole batches.
        validate_every: Epochs from one validation of patches to the next; the last epoch has one too.
        validate_full: The same for whole cases; None or 0: never.
        num_workers: Worker processes of the training loader.
        prepare_workers: Processes that check and prepare cases; None for as many as cores and free memory allow.
        limit_cases: Number of training cases of the fold to keep, the first ones by id. The split itself is made of
            all cases, so the validation cases stay those of the fold and scores stay comparable.

    Raises:
        InputError: from the constructor for impossible values, all at once; later for a dataset that cannot
            be used.
    """

    plan: Plan
    dataset: RawDataset
    folds: int
    train_cases: list[Case]
    val_cases: list[Case]
    test_cases: list[Case]

    def __init__(
        self,
        *,
        layout: Layout,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        labels: Mapping[int, str] | None = None,
        label_map: Mapping[int, int] | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        regions_class_order: Sequence[int] | None = None,
        spacing_unit: Unit | None = None,
        fold: int | Literal["all"] = 0,
        split: SplitRule = "five_fold",
        group: str | None = None,
        exclude: Sequence[str] | None = None,
        score_test: bool = True,
        seed: int = 0,
        plan: Mapping[str, Any] | None = None,
        mirror_axes: Sequence[int] = (0, 1, 2),
        augmentation: str | Mapping[str, Any] = "nnunet",
        augment_on: Literal["worker", "device"] = "worker",
        sampler: PatchSampler | None = None,
        accumulate: int = 1,
        steps_per_epoch: int = 250,
        validation_patches: int = 100,
        validate_every: int = 1,
        validate_full: int | None = None,
        num_workers: int = 2,
        prepare_workers: int | None = None,
        limit_cases: int | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # one case and two processes: one gets no case
        folder = Path(root) / layout.folder_name(name)
        table = LabelTable.of_config(labels, label_map, regions, regions_class_order)
        self.source = DataSource(folder, layout, table, tuple(exclude or ()), spacing_unit)
        self.prepared_root = Path(prepared_root)
        self.choice = CaseChoice(fold, split, group, limit_cases, score_test)
        self.seed = seed
        self.plan_options = dict(plan or {})
        self.mirror_axes = tuple(int(axis) for axis in mirror_axes)
        self.augmentation = augmentation
        self.augment_on = augment_on
        self.sampler = sampler or PatchSampler()
        self.accumulate = accumulate
        self.steps_per_epoch = steps_per_epoch
        self.validation_patches = validation_patches
        self.validate_every = validate_every
        self.validate_full = validate_full
        self.num_workers = num_workers
        self.prepare_workers = prepare_workers
        raise_problems(option_problems(vars(self)), "The data configuration cannot be used:")
        self._prepared: tuple[list[PreparedCase], list[PreparedCase]] | None = None
        self._built: Augmentation | None = None
        self._start = (0, 0)

    @property
    def prepared_folder(self) -> Path:
        """Folder of the fingerprint, plan.json and prepared cases of this dataset."""
        return self.prepared_root / self.source.prepared_name

    @property
    def run_split(self) -> RunSplit:
        """The case ids of the split, which a run stores."""
        parts = (self.train_cases, self.val_cases, self.test_cases)
        return RunSplit(self.folds, *(tuple(case.id for case in part) for part in parts))

    def prepare_data(self) -> None:
        """Create the raw data if the source can, check it at first use, then plan and prepare cases not yet on disk."""
        self.source.create()
        if self.sampler.has_weights:  # fails before the check reads every file
            self._bind_sampler(read_chosen(self.source, self.choice))
        check_at_first_use(self.source, self.prepared_folder, self.prepare_workers, self.choice)
        self._prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read dataset, plan and split, and reuse the prepared cases (made here if they are missing)."""
        if self._prepared is None:
            self._prepare()

    def train_dataloader(self) -> DataLoader:
        """Return a loader of `steps_per_epoch` batches; InputError if waiting ones do not fit into shared memory."""
        rank, world_size = self._place()
        dataset = PatchDataset(
            self._prepared_cases()[0],
            self.plan.patch_size,
            batch_size=self.plan.batch_size * world_size,
            augmentation=self._recipe(),
            seed=self.seed,
            augment_here=self.augment_on == "worker",
            affine=frame_affine(self.plan.spacing, self.plan.depth_axis),
            sampler=self.sampler,
            accumulate=self.accumulate,
        )
        place: dict[str, Any] = {"rank": rank, "world_size": world_size, "start": self._start}
        sampler = EpochSampler(self.steps_per_epoch, self.plan.batch_size, **place)
        processes = self.trainer.num_devices if self.trainer else 1
        require_shared_memory(dataset, self.plan.batch_size, self.num_workers, processes)
        return patch_loader(dataset, sampler, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the batch in it that training takes next, for a checkpoint."""
        if self.trainer is None:
            return {}
        loop: Any = self.trainer.fit_loop
        under_way = loop.epoch_progress.current.started > loop.epoch_progress.current.processed
        batch = loop.epoch_loop.batch_progress.current.completed if under_way else 0
        return {"epoch": loop.epoch_progress.current.processed, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let `train_dataloader` start at the epoch and batch of `state_dict`."""
        self._start = (state_dict["epoch"], state_dict["batch"])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment training patches on the training device if `augment_on` says so, and widen labels to int64.

        Until here labels keep their stored type: uint8 takes an eighth of the bytes.
        """
        draws = batch.pop("draw", None)
        if draws is not None:
            parts = batch["image"], batch["label"], draws, batch.pop("inside", ())
            batch["image"], batch["label"] = self._recipe().apply(*parts)
        batch["label"] = batch["label"].long()
        return batch

    def val_dataloader(self) -> list[DataLoader]:
        """Return loader 0, batches of patches, and with `validate_full` loader 1, whole cases, one per batch.

        Both read memory-mapped files in this process. A loader is empty in epochs without its validation.
        """
        cases, size = self._prepared_cases()[1], self.plan.batch_size
        epochs = self.trainer.max_epochs if self.trainer else None
        rank, world_size = self._place()
        patches = ValidationPatches(
            cases, self.plan.patch_size, count=self.validation_patches, batch_size=size * world_size, seed=self.seed
        )
        sampler = PeriodicSampler(len(patches), self.validate_every, epochs, rank=rank, world_size=world_size)
        pinned = memory_is_pinned()
        loaders = [DataLoader(patches, batch_size=size, sampler=sampler, pin_memory=pinned)]
        if self.validate_full:
            whole = PeriodicSampler(len(cases), self.validate_full, epochs, rank=rank, world_size=world_size)
            loaders.append(DataLoader(CaseDataset(cases), batch_size=1, sampler=whole, pin_memory=pinned))
        return loaders

    def _place(self) -> tuple[int, int]:
        """Return the rank of this process and the world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _recipe(self) -> Augmentation:
        if self._built is None:  # built once: with augmentation on the device every batch asks for it
            masked = self.plan.masked_channels
            self._built = build_augmentation(
                self.plan.patch_size, self.mirror_axes, self.augmentation, masked_channels=masked
            )
        return self._built

    def _prepare(self) -> None:
        folder = self.prepared_folder
        chosen = read_chosen(self.source, self.choice, remembered_problems(self.source, folder))
        self.dataset, self.folds = chosen.dataset, chosen.split.folds
        self.train_cases, self.val_cases, self.test_cases = map(
            list, (chosen.split.train, chosen.split.validation, chosen.split.test)
        )
        self._bind_sampler(chosen)
        self.plan = plan_dataset(chosen.usable, folder, workers=self.prepare_workers, **self.plan_options)
        needed = {case.id: case for case in (*self.train_cases, *self.val_cases)}
        made = prepare_cases(self.dataset, list(needed.values()), self.plan, folder, self.prepare_workers)
        prepared = {case.id: case for case in made}
        self._prepared = (
            [prepared[case.id] for case in self.train_cases],
            [prepared[case.id] for case in self.val_cases],
        )
        if not any(set(case.foreground) - {ANNOTATED} for case in self._prepared[0]):
            count = len(self.train_cases)
            raise InputError(
                f"{self.source.folder}: none of the {count} training cases of fold {self.choice.fold} has a labelled "
                "voxel, foreground in at least one expected"
            )

    def _bind_sampler(self, chosen: ChosenCases) -> None:
        known = {case.id for case in (*chosen.dataset.training, *chosen.dataset.validation)}
        self.sampler.bind(chosen.dataset.scheme, known, [case.id for case in chosen.split.train])

    def _prepared_cases(self) -> tuple[list[PreparedCase], list[PreparedCase]]:
        if self._prepared is None:
            raise RuntimeError("call setup() before asking for a data loader")
        return self._prepared
