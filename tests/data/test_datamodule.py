"""Data modules on tiny datasets: splits, batches, the phantom's folder, all wrong values in one error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.data.cases.splits import five_fold
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.layouts.described import MSDLayout, NNUNetLayout
from e2enet.data.layouts.phantom import PhantomLayout
from e2enet.data.loaders.patch_sampler import PatchSampler
from e2enet.data.loaders.sampling import PatchDataset

PATCH = (8, 16, 16)
PLAN = {"patch_size": PATCH, "strides": [(1, 2, 2), (2, 2, 2)], "batch_size": 2}
SMALL = {"num_train": 6, "num_test": 1, "shape": (32, 32, 12)}


def phantom_module(folder: Path, **options: object) -> SegmentationDataModule:
    defaults = {"plan": PLAN, "steps_per_epoch": 2, "num_workers": 0, "mirror_axes": (1, 2)}
    roots = {"root": folder / "raw", "prepared_root": folder / "prepared"}
    layout = PhantomLayout(**SMALL)  # type: ignore[arg-type]
    return SegmentationDataModule(layout=layout, name="phantom", **roots, **defaults | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the small phantom, generated and prepared."""
    folder = tmp_path_factory.mktemp("data")
    phantom_module(folder, fold="all").prepare_data()
    return folder


def test_constructor_touches_nothing(tmp_path: Path) -> None:
    phantom_module(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_setup_gives_plan_dataset_and_fold(folder: Path) -> None:
    module = phantom_module(folder, fold=1)
    module.prepare_data()
    module.setup("fit")
    assert module.plan.patch_size == PATCH and module.plan.depth_axis == 2
    assert module.plan.spacing[0] == pytest.approx(3, abs=0.15)
    assert len(module.dataset.labels) == 6 and module.mirror_axes == (1, 2)
    train, val = five_fold([f"phantom_{number:03d}" for number in range(1, 7)], 1)
    assert [case.id for case in module.train_cases] == train
    assert [case.id for case in module.val_cases] == val


def test_batches_have_the_promised_form(folder: Path) -> None:
    module = phantom_module(folder)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert batch["label"].dtype == torch.uint8  # as stored, until it is on the training device
        batch = module.on_after_batch_transfer(batch, 0)
        assert batch["image"].shape == (2, 1, *PATCH) and batch["image"].dtype == torch.float32
        assert batch["label"].shape == (2, *PATCH) and batch["label"].dtype == torch.int64
        assert set(batch["case"]) <= {case.id for case in module.train_cases}


def test_the_share_of_foreground_and_the_batches_of_a_step_reach_the_sampling(folder: Path) -> None:
    module = phantom_module(folder, sampler=PatchSampler(0.125), accumulate=5)
    module.setup("fit")
    patches = module.train_dataloader().dataset
    assert isinstance(patches, PatchDataset)
    assert (patches.sampler.foreground_share, patches.accumulate, patches.batch_size) == (0.125, 5, 2)


def test_validation_reads_patches_every_epoch_and_whole_cases_in_some(folder: Path) -> None:
    module = phantom_module(folder, validation_patches=3, validate_full=2)
    module.setup("fit")
    patches, cases = module.val_dataloader()
    for epoch in (0, 1):
        patches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        cases.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches = list(patches)
        assert [batch["image"].shape for batch in batches] == [(2, 1, *PATCH)] * 2
        assert {name for batch in batches for name in batch["case"]} == {case.id for case in module.val_cases}
        whole = list(cases)
        assert len(whole) == (len(module.val_cases) if epoch == 1 else 0)
    first = whole[0]
    assert first["case"] == [module.val_cases[0].id]
    assert first["image"].shape[0] == 1 and first["image"].shape[2:] == first["label"].shape[1:]
    assert set(np.unique(first["label"])) == set(range(6))


@pytest.mark.parametrize("gpu", [False, True])
def test_batches_lie_in_pinned_memory_where_a_gpu_is(gpu: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = phantom_module(folder, validate_full=2)
    module.setup("fit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    loaders = [module.train_dataloader(), *module.val_dataloader()]
    assert [loader.pin_memory for loader in loaders] == [gpu] * 3


def test_loader_repeats_itself_from_seed_and_epoch(folder: Path) -> None:
    def epoch_sum(seed: int, epoch: int) -> float:
        module = phantom_module(folder, seed=seed)
        module.setup("fit")
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return sum(float(batch["image"].double().sum()) for batch in loader)

    assert epoch_sum(0, 3) == epoch_sum(0, 3)
    assert len({epoch_sum(0, 3), epoch_sum(1, 3), epoch_sum(0, 4)}) == 3


def test_fold_all_trains_and_validates_on_everything(folder: Path) -> None:
    module = phantom_module(folder, fold="all")
    module.setup()
    assert len(module.train_cases) == 6 and module.train_cases == module.val_cases


def test_limit_keeps_the_folds_validation_cases(folder: Path) -> None:
    whole, limited = phantom_module(folder), phantom_module(folder, limit_cases=2)
    whole.setup()
    limited.setup()
    assert limited.train_cases == whole.train_cases[:2] and limited.val_cases == whole.val_cases
    everything = phantom_module(folder, fold="all", limit_cases=1)
    everything.setup()
    assert len(everything.val_cases) == 1 and everything.val_cases == everything.train_cases
    with pytest.raises(InputError, match="limit_cases=9"):
        phantom_module(folder, limit_cases=9).setup()


def test_other_phantom_parameters_take_another_folder(folder: Path) -> None:
    names = {PhantomLayout(**SMALL, phantom_seed=seed).folder_name("phantom") for seed in (0, 0, 1)}  # type: ignore[arg-type]
    assert len(names) == 2 and phantom_module(folder).source.folder.name in names


def test_msd_and_nnunet_layouts_give_the_same_samples(folder: Path, tmp_path: Path) -> None:
    raw = phantom_module(folder).source.folder
    nnunet = tmp_path / "Dataset001_Phantom"
    for part in ("imagesTr", "labelsTr"):
        (nnunet / part).mkdir(parents=True)
        for file in (raw / part).iterdir():
            name = file.name.replace(".nii.gz", "_0000.nii.gz") if part == "imagesTr" else file.name
            shutil.copy(file, nnunet / part / name)
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {name: int(value) for value, name in labels.items()},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (nnunet / "dataset.json").write_text(json.dumps(description))
    common = {"prepared_root": tmp_path / "prepared", "plan": PLAN, "steps_per_epoch": 2, "num_workers": 0}
    modules = (
        SegmentationDataModule(layout=MSDLayout(), name=raw.name, root=raw.parent, **common),  # type: ignore[arg-type]
        SegmentationDataModule(layout=NNUNetLayout(), name=nnunet.name, root=tmp_path, **common),  # type: ignore[arg-type]
    )
    batches = []
    for module in modules:
        module.prepare_data()
        module.setup("fit")
        batches.append(next(iter(module.train_dataloader())))
    assert batches[0]["case"] == batches[1]["case"]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert torch.equal(batches[0]["label"], batches[1]["label"])


def test_every_impossible_value_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        phantom_module(
            tmp_path,
            fold=5,
            plan={"patch": 3},
            augmentation="x",
            augment_on="y",
            sampler="s",
            mirror_axes=(1, 1),
            seed=-1,
            limit_cases=0,
        )
    for word in (
        "fold=5",
        "['patch']",
        "augmentation='x'",
        "augment_on='y'",
        "sampler='s'",
        "mirror_axes=[1, 1]",
        "seed=-1",
        "limit_cases=0",
    ):
        assert word in str(error.value)


def test_too_few_cases_for_five_folds_says_how_many(tmp_path: Path) -> None:
    roots = {"root": tmp_path / "raw", "prepared_root": tmp_path / "prepared"}
    layout = PhantomLayout(num_train=2, num_test=0, shape=(32, 32, 12))
    module = SegmentationDataModule(layout=layout, name="phantom", **roots, plan=PLAN)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 training cases"):
        module.prepare_data()


def test_missing_dataset_names_its_folder(tmp_path: Path) -> None:
    roots = {"root": tmp_path, "prepared_root": tmp_path / "prepared"}
    module = SegmentationDataModule(layout=MSDLayout(), name="Task00_None", **roots)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Task00_None"):
        module.prepare_data()


def test_loaders_need_setup(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="setup"):
        phantom_module(tmp_path).train_dataloader()
