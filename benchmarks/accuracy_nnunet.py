"""nnU-Net's side of `benchmarks.accuracy`: its own commands on links to the same scans, with the same split.

nnUNetv2_plan_and_preprocess, nnUNetv2_train and nnUNetv2_predict lie beside the interpreter that has nnunetv2. Plan,
network, data, augmentation, loss and optimizer are nnU-Net's defaults. `describe` lists everything that is set.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.accuracy_plan import Schedule
from benchmarks.accuracy_work import ROOT, Bench, Job, read_record, run_program, thread_variables
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import atomic_path, write_json
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case

NUMBER, CONFIGURATION, PLANS, TRAINER = "1", "3d_fullres", "nnUNetPlans", "nnUNetTrainerMinutes"
TRAINERS = ROOT / "benchmarks" / "nnunet_trainers"
SPLITS = "splits_final.json"
PACKAGES = ("nnunetv2", "torch")


def check(bench: Bench, method: str) -> None:
    """InputError if nnU-Net is missing, or cannot read the dataset as it is."""
    if not _command(bench, "nnUNetv2_train").is_file():
        raise InputError(
            f"{bench.nnunet_python}: no nnUNetv2_train beside it; a Python with nnunetv2 expected (--nnunet-python, "
            "NNUNET_PYTHON), or --methods without nnunet"
        )
    dataset, split = bench.chosen.dataset, bench.chosen.split
    problems = [
        f"{case.id}: a file per channel expected, {len(case.images)} are there"
        for case in (*split.train, *split.validation)
        if len(case.images) != len(dataset.channels) or any(not path.is_file() for path in case.images)
    ]
    special = {"label_map": dataset.label_map, "labels": dataset.scheme.special, "unit": split.train[0].unit}
    problems += [f"{key} {value}: none expected" for key, value in special.items() if value]
    raise_problems(problems, f"{dataset.folder}: nnU-Net would read other images or labels:")


def prepare(bench: Bench) -> None:
    """Link the dataset, let nnU-Net plan and preprocess it, and give it the split.

    The split is written last: it marks that the rest is done.
    """
    name = _name(bench)
    raw, preprocessed = bench.folder / "nnunet" / "raw" / name, bench.folder / "nnunet" / "preprocessed" / name
    if not raw.is_dir():
        split = bench.chosen.split
        write_raw(bench.chosen.dataset, (*split.train, *split.validation), raw)
    if not (preprocessed / SPLITS).is_file():
        processes = str(bench.threads)
        words = ["-d", NUMBER, "-c", CONFIGURATION, "-npfp", processes, "-np", processes, "--verify_dataset_integrity"]
        log = bench.folder / "nnunet"
        run_program([_command(bench, "nnUNetv2_plan_and_preprocess"), *words], log, _variables(bench, log))
        parts = {"train": bench.chosen.split.train, "val": bench.chosen.split.validation}
        write_json(preprocessed / SPLITS, [{part: [case.id for case in cases] for part, cases in parts.items()}])


def write_raw(dataset: RawDataset, cases: tuple[Case, ...], folder: Path) -> None:
    """Write a dataset in nnU-Net's raw format: links to the files of these cases, and dataset.json."""
    with atomic_path(folder) as temporary:
        link_images(cases, temporary / "imagesTr", dataset.file_ending)
        (temporary / "labelsTr").mkdir()
        for case in cases:
            assert case.label is not None
            (temporary / "labelsTr" / f"{case.id}{dataset.file_ending}").symlink_to(case.label.resolve())
        names = {"background" if value == 0 else name: value for value, name in sorted(dataset.labels.items())}
        channels = {str(number): name for number, name in enumerate(dataset.channels)}
        content = {"channel_names": channels, "labels": names, "numTraining": len(cases)}
        write_json(temporary / "dataset.json", content | {"file_ending": dataset.file_ending})


def link_images(cases: tuple[Case, ...], folder: Path, ending: str) -> None:
    """Write links to the scans, named CASE_0000 and so on by channel."""
    folder.mkdir(parents=True)
    for case in cases:
        for channel, path in enumerate(case.images):
            (folder / f"{case.id}_{channel:04d}{ending}").symlink_to(path.resolve())


def measure_seconds(bench: Bench, method: str, steps: int) -> float:
    """Train two epochs of so many iterations and return the second's seconds per iteration."""
    folder = bench.folder / "timing" / method
    shutil.rmtree(folder, ignore_errors=True)
    _train(bench, 0, Schedule(0.0, steps, 2, {}), folder)
    seconds = _epoch_seconds(bench, folder)[1] / steps
    shutil.rmtree(folder)
    return seconds


def train(bench: Bench, job: Job) -> None:
    """Train to the end of the schedule, from the last checkpoint if there is one."""
    if not (_fold(bench, job.folder) / "checkpoint_final.pth").is_file():
        _train(bench, job.seed, job.schedule, job.folder)


def predict(bench: Bench, job: Job, minutes: float, output: Path) -> None:
    """Predict all validation scans with the weights of a point: nnU-Net, killed, leaves half a file."""
    shutil.rmtree(output, ignore_errors=True)
    checkpoint = f"checkpoint_epoch_{job.schedule.points[minutes]:04d}.pth"
    places: list[str | Path] = ["-i", bench.images, "-o", output, "-chk", checkpoint]
    model = ["-d", NUMBER, "-p", PLANS, "-tr", TRAINER, "-c", CONFIGURATION, "-f", "0"]
    how = ["-device", "cpu", "-npp", "1", "-nps", "1"]
    command = [_command(bench, "nnUNetv2_predict"), *places, *model, *how]
    run_program(command, job.folder, _variables(bench, job.folder))


def clock_seconds(bench: Bench, job: Job, minutes: float) -> float:
    """Return the seconds that the iterations up to a point took."""
    seconds = _epoch_seconds(bench, job.folder)
    return sum(seconds[epoch] for epoch in range(job.schedule.points[minutes]))


def describe(bench: Bench, job: Job) -> dict[str, Any]:
    """Return patch, batch and versions of a finished training, and everything that was set."""
    path = bench.folder / "nnunet" / "preprocessed" / _name(bench) / f"{PLANS}.json"
    plan = read_record(path, ["configurations"])["configurations"][CONFIGURATION]
    longest, schedule = max(job.schedule.points), job.schedule
    return {
        "patch_size": plan["patch_size"],
        "batch_size": plan["batch_size"],
        "versions": _versions(bench),
        "settings": [
            "nnUNetv2_plan_and_preprocess, nnUNetv2_train -device cpu and nnUNetv2_predict -device cpu, with the "
            f"default plan {CONFIGURATION} and nnU-Net's own network, augmentation, loss, optimizer and mirroring",
            f"{schedule.epochs} epochs of {schedule.steps_per_epoch} iterations in the place of 1000 of 250: the poly "
            f"schedule ends at {longest:g} minutes",
            "1 iteration of validation an epoch in the place of 50; its time is not counted",
            "checkpoints kept at the minutes, and the latest written every epoch in the place of every 50",
            "no validation by nnUNetv2_train at the end: nnUNetv2_predict predicts from each kept checkpoint",
            f"{bench.threads} processes that augment (nnUNet_n_proc_DA)",
            "weights and augmentation seeded by the seed; the split in splits_final.json",
        ],
    }


def _train(bench: Bench, seed: int, schedule: Schedule, folder: Path) -> None:
    settings: dict[str, Any] = {"epochs": schedule.epochs, "iterations_per_epoch": schedule.steps_per_epoch}
    settings |= {"keep": list(schedule.points.values()), "threads": bench.run_threads, "seed": seed}
    variables = {"ACCURACY_TRAINING": json.dumps(settings)}
    resume = ["--c"] if (_fold(bench, folder) / "checkpoint_latest.pth").is_file() else []
    words = [NUMBER, CONFIGURATION, "0", "-tr", TRAINER, "-p", PLANS, "-device", "cpu", *resume]
    run_program([_command(bench, "nnUNetv2_train"), *words], folder, _variables(bench, folder) | variables)


def _variables(bench: Bench, folder: Path) -> dict[str, str]:
    places = {"raw": bench.folder / "nnunet" / "raw", "preprocessed": bench.folder / "nnunet" / "preprocessed"}
    found = {f"nnUNet_{name}": str(path.resolve()) for name, path in {**places, "results": folder / "results"}.items()}
    found |= {"nnUNet_extTrainer": str(TRAINERS)}
    # Both would be as many on a machine of so many cores.
    found |= {"nnUNet_n_proc_DA": str(bench.threads), "nnUNet_def_n_proc": str(bench.threads)}
    return thread_variables(bench.run_threads) | found


def _name(bench: Bench) -> str:
    return f"Dataset001_{bench.dataset}"


def _fold(bench: Bench, folder: Path) -> Path:
    return folder / "results" / _name(bench) / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / "fold_0"


def _epoch_seconds(bench: Bench, folder: Path) -> dict[int, float]:
    content = read_record(_fold(bench, folder) / "epoch_seconds.json", [])
    return {int(epoch): float(seconds) for epoch, seconds in content.items()}


def _command(bench: Bench, name: str) -> Path:
    # Not resolved: the interpreter of a virtual environment is a link to one outside of it.
    return Path(os.path.abspath(bench.nnunet_python)).parent / name


def _versions(bench: Bench) -> str:
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {PACKAGES}), sep=', ')"
    done = subprocess.run([bench.nnunet_python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
