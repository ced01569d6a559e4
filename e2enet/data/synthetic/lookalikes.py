"""Small look-alikes of public datasets: their folders, names, label values, data types, spacings and orientations.

They hold drawn scans of 11,000 to 46,000 voxels, so that all code that reads a download can be tried without one.
Each has `num_cases` labelled training cases (five folds need five) and a few validation or test cases. Every label
value occurs in the first case. The same seed gives the same bytes. A folder appears only when complete.
docs/datasets/ describes each layout and gives the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, require_new_folder, write_json
from e2enet.data.synthetic.scans import CT, MRI_BRIGHT, MRI_DARK, Scan, draw_organs, draw_tumour
from e2enet.data.synthetic.stored import Encoding, Grid, save_image, save_label

# Names as dataset.json spells them.
AMOS_LABELS = (
    *("background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota"),
    *("postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
)
AMOS_FIRST_MRI = 507
BTCV_ORGANS = 13
ABDOMEN_SHAPE, BRAIN_SHAPE, PROSTATE_SHAPE = (44, 42, 14), (36, 40, 32), (32, 30, 12)


@dataclass(frozen=True)
class Storage:
    """Grid and encoding of a case's files."""

    grid: Grid
    encoding: Encoding


# Cases cycle through these. CT is often stored unsigned with an intercept of -1024, or directly in Hounsfield units.
AMOS_CT = (
    Storage(Grid((0.68, 0.68, 5.0), "LPS", origin=(-150.0, -140.0, -700.0)), Encoding("int16", 1.0, -1024.0)),
    Storage(Grid((0.78, 0.78, 5.0), "RAS", origin=(-170.0, -160.0, 1200.0)), Encoding("int16")),
    Storage(Grid((0.84, 0.84, 4.0), "LPS", tilt=8.0, origin=(-190.0, -90.0, 40.0)), Encoding("float32")),
)
AMOS_MRI = (
    Storage(Grid((1.19, 1.19, 3.0), "LPS", tilt=3.0, origin=(-210.0, -150.0, -80.0)), Encoding("uint16")),
    Storage(Grid((1.25, 1.25, 3.0), "RAS", tilt=-6.0, origin=(-200.0, -140.0, 0.0)), Encoding("int16", 0.5, 0.0)),
)
BTCV = (
    Storage(Grid((0.668, 0.668, 3.0), "LAS", origin=(-170.0, -170.0, -400.0)), Encoding("int16")),
    Storage(Grid((0.977, 0.977, 2.5), "LAS", origin=(-230.0, -200.0, 30.0)), Encoding("int16", 1.0, -1024.0)),
)
BRATS_CASE = Storage(Grid((1.0, 1.0, 1.0), "LPS", origin=(1.0 - BRAIN_SHAPE[0], 0.0, 0.0)), Encoding("int16"))
BRATS_MSD = Storage(Grid((1.0, 1.0, 1.0), "RAS"), Encoding("float32"))
MSD = (
    Storage(Grid((0.62, 0.62, 3.6), "LPS", tilt=12.0, origin=(-80.0, -70.0, 15.0)), Encoding("int16", 2.0, 0.0)),
    Storage(Grid((0.62, 0.62, 4.0), "RAS", origin=(-90.0, -95.0, -40.0)), Encoding("float32")),
)
NNUNET = MSD
KITS = Storage(Grid((0.78, 0.78, 3.0), "IPL", origin=(-160.0, -150.0, -90.0)), Encoding("int16"))
# The sform of the organisers' files has voxels of 1 x 1 x 1 mm (nnU-Net's issue 2741).
ACDC = Storage(Grid((1.56, 1.56, 8.0), "LPS", wrong_sform=True), Encoding("int16"))


def write_amos(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """AMOS22: `num_cases` CT and as many MRI training cases, two validation and one test case of each.

    Thick slices, LPS and RAS, some oblique, int16 with slope and intercept among other types; 15 organs.
    """
    entries: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    parts = [("training", "Tr")] * num_cases + [("validation", "Va")] * 2 + [("test", "Ts")]
    with _new_folder(folder, num_cases) as root:
        for first, storages, contrast in ((1, AMOS_CT, CT), (AMOS_FIRST_MRI, AMOS_MRI, MRI_BRIGHT)):
            for index, (section, part) in enumerate(parts):
                number = first + index
                name = f"amos_{number:04d}.nii.gz"
                absent = () if index == 0 else (1 + (7 * index) % 15,)
                scan = draw_organs(_rng(seed, number), ABDOMEN_SHAPE, 15, (contrast,), absent)
                storage = storages[index % len(storages)]
                entry = {"image": f"./images{part}/{name}"}
                save_image(root / f"images{part}" / name, scan.channels, storage.grid, storage.encoding)
                if section != "test":
                    entry["label"] = f"./labels{part}/{name}"
                    save_label(root / f"labels{part}" / name, scan.label, storage.grid)
                entries[section].append(entry)
        description = _description("AMOS", {"0": "CT"}, AMOS_LABELS, len(entries["training"]))
        write_json(root / "dataset.json", {**description, "numTest": len(entries["test"]), **entries})
    return folder


def write_btcv(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """BTCV: RawData/Training with `num_cases` cases of CT and 13 organs, RawData/Testing with two without labels.

    LAS, slices of 3 and 2.5 mm, int16 with and without an intercept.
    """
    with _new_folder(folder, num_cases) as root:
        numbers = [*range(1, num_cases + 1), 61, 62]
        for index, number in enumerate(numbers):
            absent = () if index == 0 else (1 + (5 * index) % BTCV_ORGANS,)
            scan = draw_organs(_rng(seed, number), ABDOMEN_SHAPE, BTCV_ORGANS, (CT,), absent)
            storage = BTCV[index % len(BTCV)]
            part = root / "RawData" / ("Training" if index < num_cases else "Testing")
            save_image(part / "img" / f"img{number:04d}.nii.gz", scan.channels, storage.grid, storage.encoding)
            if index < num_cases:
                save_label(part / "label" / f"label{number:04d}.nii.gz", scan.label, storage.grid)
    return folder


def write_brats(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """BraTS as of 2021: a folder per case, four modalities, labels 1, 2 and 4; one more case without labels.

    LPS, 1 mm, int16, 0 outside the brain; the second case has no enhancing tumour.
    """
    names = [f"BraTS2021_{index:05d}" for index in range(num_cases + 1)]
    values = {"core": 1, "edema": 2, "enhancing": 4}
    return _write_brats_cases(folder, num_cases, seed, names, values, ("_flair", "_t1", "_t1ce", "_t2", "_seg"))


def write_brats_2023(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """The same scans as of 2023: other names, and 3 for the enhancing tumour."""
    names = [f"BraTS-GLI-{index:05d}-000" for index in range(num_cases + 1)]
    values = {"core": 1, "edema": 2, "enhancing": 3}
    return _write_brats_cases(folder, num_cases, seed, names, values, ("-t2f", "-t1n", "-t1c", "-t2w", "-seg"))


def write_kits(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """KiTS as of 2023: `num_cases` labelled cases of CT and a test case; single annotations beside the first.

    As far as is known of the download, the first array axis is the one across slices; int16.
    """
    with _new_folder(folder, num_cases) as root:
        for index in range(num_cases + 1):
            absent = () if index == 0 else (1 + index % 3,)
            scan = draw_organs(_rng(seed, index), ABDOMEN_SHAPE, 3, (CT,), absent)
            case = root / "dataset" / f"case_{index:05d}"
            save_image(case / "imaging.nii.gz", scan.channels, KITS.grid, KITS.encoding)
            if index < num_cases:
                save_label(case / "segmentation.nii.gz", scan.label, KITS.grid)
            if index == 0:
                save_label(case / "instances" / "kidney_instance-1.nii.gz", scan.label == 1, KITS.grid)
    return folder


def write_acdc(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """ACDC: `num_cases` patients with two labelled frames each, and one to test on; thick slices, LPS, int16.

    As in the download, the sform's voxels are of 1 x 1 x 1 mm; pixdim holds the spacing.
    """
    with _new_folder(folder, num_cases) as root:
        for number in [*range(1, num_cases + 1), 101]:
            patient = f"patient{number:03d}"
            place = root / "database" / ("training" if number < 101 else "testing") / patient
            for frame in (1, 12):
                scan = draw_organs(_rng(seed, 100 * number + frame), PROSTATE_SHAPE, 3, (MRI_BRIGHT,))
                name = f"{patient}_frame{frame:02d}"
                save_image(place / f"{name}.nii.gz", scan.channels, ACDC.grid, ACDC.encoding)
                save_label(place / f"{name}_gt.nii.gz", scan.label, ACDC.grid)
            save_image(place / f"{patient}_4d.nii.gz", [*scan.channels] * 2, ACDC.grid, ACDC.encoding)
    return folder


def write_brats_msd(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """Task01_BrainTumour: 4D float32 of four modalities on an identity affine, labels 1, 2, 3; two test cases."""
    values = {"edema": 1, "core": 2, "enhancing": 3}
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    labels = ("background", "edema", "non-enhancing tumor", "enhancing tumour")

    def draw(index: int) -> tuple[Scan, Storage]:
        return draw_tumour(_rng(seed, index), BRAIN_SHAPE, values, _missing_tissue(index)), BRATS_MSD

    names = [*(f"BRATS_{index:03d}" for index in range(1, num_cases + 1)), "BRATS_485", "BRATS_486"]
    _write_decathlon(folder, "BRATS", modality, labels, names, num_cases, draw)
    return folder


def write_msd(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """A Decathlon task of two modalities, like Task05_Prostate: 4D, thick oblique slices; two test cases."""

    def draw(index: int) -> tuple[Scan, Storage]:
        scan = draw_organs(_rng(seed, index), PROSTATE_SHAPE, 2, (MRI_BRIGHT, MRI_DARK))
        return scan, MSD[index % len(MSD)]

    names = [f"prostate_{index:02d}" for index in range(num_cases + 2)]
    labels = ("background", "PZ", "TZ")
    _write_decathlon(folder, "PROSTATE", {"0": "T2", "1": "ADC"}, labels, names, num_cases, draw)
    return folder


def write_nnunet(folder: Path, num_cases: int = 5, seed: int = 0) -> Path:
    """The same scans in nnU-Net's raw layout, a file per channel (_0000, _0001); the two test cases have labels."""
    labels = {"background": 0, "PZ": 1, "TZ": 2}
    with _new_folder(folder, num_cases) as root:
        for index in range(num_cases + 2):
            scan = draw_organs(_rng(seed, index), PROSTATE_SHAPE, 2, (MRI_BRIGHT, MRI_DARK))
            storage, part = NNUNET[index % len(NNUNET)], "Tr" if index < num_cases else "Ts"
            for number, channel in enumerate(scan.channels):
                path = root / f"images{part}" / f"prostate_{index:02d}_{number:04d}.nii.gz"
                save_image(path, [channel], storage.grid, storage.encoding)
            save_label(root / f"labels{part}" / f"prostate_{index:02d}.nii.gz", scan.label, storage.grid)
        channel_names = {"0": "T2", "1": "ADC"}
        content = {"channel_names": channel_names, "labels": labels, "numTraining": num_cases}
        write_json(root / "dataset.json", {**content, "file_ending": ".nii.gz"})
    return folder


# Name on the command line -> writer, and the folder's name in the config of the dataset.
LOOKALIKES: dict[str, tuple[Callable[[Path, int, int], Path], str]] = {
    "amos": (write_amos, "amos22"),
    "btcv": (write_btcv, "BTCV"),
    "brats": (write_brats_msd, "Task01_BrainTumour"),
    "brats_cases": (write_brats, "BraTS2021"),
    "brats_2023": (write_brats_2023, "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"),
    "kits": (write_kits, "kits23"),
    "acdc": (write_acdc, "ACDC"),
    "msd": (write_msd, "Task05_Prostate"),
    "nnunet": (write_nnunet, "Dataset005_Prostate"),
}


def _write_brats_cases(
    folder: Path, num_cases: int, seed: int, names: Sequence[str], values: dict[str, int], ends: Sequence[str]
) -> Path:
    """Write a folder per case. `ends` end the names of the drawn channels' files in order, then of the label's."""
    with _new_folder(folder, num_cases) as root:
        for index, case in enumerate(names):
            scan = draw_tumour(_rng(seed, index), BRAIN_SHAPE, values, _missing_tissue(index))
            for end, channel in zip(ends[:-1], scan.channels, strict=True):
                save_image(root / case / f"{case}{end}.nii.gz", [channel], BRATS_CASE.grid, BRATS_CASE.encoding)
            if index < num_cases:
                save_label(root / case / f"{case}{ends[-1]}.nii.gz", scan.label, BRATS_CASE.grid)
    return folder


def _write_decathlon(
    folder: Path,
    name: str,
    modality: dict[str, str],
    labels: Sequence[str],
    names: Sequence[str],
    num_cases: int,
    draw: Callable[[int], tuple[Scan, Storage]],
) -> None:
    """Write files and dataset.json of a Decathlon task. The first `num_cases` names are training cases."""
    with _new_folder(folder, num_cases) as root:
        for index, case in enumerate(names):
            scan, storage = draw(index)
            part = "Tr" if index < num_cases else "Ts"
            save_image(root / f"images{part}" / f"{case}.nii.gz", scan.channels, storage.grid, storage.encoding)
            if part == "Tr":
                save_label(root / "labelsTr" / f"{case}.nii.gz", scan.label, storage.grid)
        # macOS leaves such files in the Decathlon's archives, beside every scan.
        (root / "imagesTr" / f"._{names[0]}.nii.gz").write_bytes(b"")
        training, test = names[:num_cases], names[num_cases:]
        content = {
            **_description(name, modality, labels, num_cases),
            "numTest": len(test),
            "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in training],
            "test": [f"./imagesTs/{case}.nii.gz" for case in test],
        }
        write_json(root / "dataset.json", content)


def _description(name: str, modality: dict[str, str], labels: Sequence[str], num_training: int) -> dict[str, Any]:
    return {
        "name": name,
        "description": "Drawn by e2enet.data.synthetic: a look-alike without any scan",
        "tensorImageSize": "4D" if len(modality) > 1 else "3D",
        "modality": modality,
        "labels": {str(value): label for value, label in enumerate(labels)},
        "numTraining": num_training,
    }


def _missing_tissue(index: int) -> tuple[str, ...]:
    """The second case is of low grade: it has no enhancing tumour."""
    return ("enhancing",) if index == 1 else ()


@contextmanager
def _new_folder(folder: Path, num_cases: int) -> Iterator[Path]:
    if num_cases < 1:
        raise InputError(f"num_cases={num_cases}: at least 1 expected")
    require_new_folder(folder)
    with atomic_path(folder) as unfinished:
        yield unfinished


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, index))
