"""nnU-Net's side of `benchmarks.predict`, for an interpreter with nnunetv2 2.8; imports nothing of e2enet.

    python -m benchmarks.predict_nnunet '{"part": "scan", "folder": .., "patch": .., "spacing": .., "classes": .., ..}'

Predicts by nnUNetPredictor with its defaults (Gaussian windows, step 0.5) except mirroring, on the CPU with one
thread, and prints seconds and memory as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.network import make_network
from benchmarks.predict_work import Stopwatch, cpu_seconds, trivial_network
from benchmarks.prepare_nnunet import make_plans


def main() -> None:
    work = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    print(json.dumps({"scan": predict_scan, "networks": predict_part}[work["part"]](work)))


def predict_scan(work: dict[str, Any]) -> dict[str, float]:
    """Predict the scan from file to file, in this process."""
    folder = Path(work["folder"])
    (folder / "theirs").mkdir(exist_ok=True)
    network = Stopwatch(trivial_network(work["classes"]))
    predictor = make_predictor(work, network)
    cpu, wall = cpu_seconds(), time.perf_counter()
    images = [[str(folder / "images" / "case_0000.nii.gz")]]
    predictor.predict_from_files_sequential(images, [str(folder / "theirs" / "case")])
    return network.figures(cpu, wall)


def predict_part(work: dict[str, Any]) -> dict[str, float]:
    """Predict a part of a volume with the plain U-Net, without reading or resampling."""
    torch.manual_seed(0)
    inner = make_network("plainconvunet")
    inner.decoder.deep_supervision = False
    network = Stopwatch(inner.eval())
    predictor = make_predictor(work | {"spacing": [1.0, 1.0, 1.0]}, network)
    with torch.inference_mode():
        inner(torch.randn(1, 1, *work["patch"]))
    cpu, wall = cpu_seconds(), time.perf_counter()
    logits = predictor.predict_logits_from_preprocessed_data(torch.randn(1, *work["shape"]))
    predictor.label_manager.convert_logits_to_segmentation(logits)
    return network.figures(cpu, wall)


def make_predictor(work: dict[str, Any], network: Stopwatch) -> Any:
    """Return an nnUNetPredictor with this network, as nnU-Net's trainer makes one for the final validation."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    scheme = work.get("ct", {"scheme": "zscore"})
    content = make_plans({"spacing": work["spacing"], "labels": work["classes"], "scheme": scheme})
    content["configurations"]["3d_fullres"] |= {
        "patch_size": work["patch"],
        # The planner's defaults.
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    plans = PlansManager(content)
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, work["classes"])}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    configuration = plans.get_configuration("3d_fullres")
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    return predictor


if __name__ == "__main__":
    main()
