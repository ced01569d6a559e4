"""nnU-Net's side of `benchmarks.prepare`; run by the interpreter that has nnunetv2, and imports nothing of e2enet.

    python -m benchmarks.prepare_nnunet '{"folder": .., "spacing": .., "scheme": .., "labels": .., "runs": ..}'

Preprocesses image.nii.gz and label.nii.gz of the folder with nnU-Net's DefaultPreprocessor and default resampling,
prints seconds and memory as JSON, and leaves its arrays as .npy for the comparison.
"""

from __future__ import annotations

import json
import os
import sys
import time

for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_name, "unused")  # nnunetv2 warns on import if they are missing

import blosc2  # noqa: E402
import numpy as np  # noqa: E402
import SimpleITK  # noqa: E402
import torch  # noqa: E402
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

from benchmarks.measuring import peak_bytes  # noqa: E402


def main() -> None:
    work = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    plans = PlansManager(make_plans(work))
    configuration = plans.get_configuration("3d_fullres")
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, work["labels"])}
    dataset = {"channel_names": {"0": "image"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    target = os.path.join(work["folder"], "nnunet")
    files = [os.path.join(work["folder"], f"{name}.nii.gz") for name in ("image", "label")]
    seconds = []
    for _ in range(work["runs"] + 1):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            if os.path.exists(target + ending):
                os.remove(target + ending)
        start = time.perf_counter()
        DefaultPreprocessor(verbose=False).run_case_save(target, files[:1], files[1], plans, configuration, dataset)
        seconds.append(time.perf_counter() - start)
    peak = peak_bytes()
    for ending, name in ((".b2nd", "image"), ("_seg.b2nd", "label")):
        np.save(os.path.join(work["folder"], f"nnunet_{name}.npy"), blosc2.open(target + ending, mode="r")[:])
    print(json.dumps({"seconds": seconds[1:], "peak": peak}))


def make_plans(work: dict) -> dict:
    """Return the parts of a plans file that preprocessing reads, with the planner's defaults."""
    scheme = work["scheme"]
    names = {"ct": "CTNormalization", "zscore": "ZScoreNormalization"}
    statistics = {}
    if scheme["scheme"] == "ct":
        statistics = {"percentile_00_5": scheme["lower"], "percentile_99_5": scheme["upper"]}
        statistics |= {"mean": scheme["mean"], "std": scheme["std"]}
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [64, 128, 128],
        "spacing": work["spacing"],
        "normalization_schemes": [names[scheme["scheme"]]],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    return {
        "plans_name": "benchmark",
        "dataset_name": "benchmark",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main()
