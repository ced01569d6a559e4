"""Prediction of a whole scan by sliding windows: time, peak memory, and whether fused predicts what plain predicts.

Windows of the work's patch overlap by half, without mirrored copies, in bfloat16; classes are chosen plane by plane.
Some planes of probabilities are kept and compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_networks import CONTENDERS, make_contender, noise
from benchmarks.gpu_options import PRECISIONS, Work
from benchmarks.gpu_report import Report, tell
from benchmarks.gpu_step import forget_memory, peak_memory
from e2enet.inference.sliding_window import count_windows, predict_planes
from e2enet.system.determinism import set_torch_flags

RUNS = ("plain", "fused", "groups")
COMPARED = 16  # planes
MOST_MEAN_DIFFERENCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}  # of probabilities, from those of plain


@dataclass(frozen=True)
class Prediction:
    """Classes (D, H, W), uint8, and probabilities (planes, K, H, W) of some planes; both on the CPU."""

    classes: Tensor
    probabilities: Tensor
    seconds: float
    gib: float


def run(work: Work, report: Report) -> None:
    """Tell time and memory of plain, fused and groups; fused must predict the classes of plain up to rounding."""
    set_torch_flags(False, "gpu" if work.on_gpu else "cpu")
    precision = "bfloat16" if "bfloat16" in work.precisions else work.precisions[0]
    image = noise(1, *work.sizes.image, device=torch.device("cpu"))
    found: dict[str, Prediction] = {}
    rows = []
    for name in RUNS:
        found[name] = own = predict(work, name, image, precision)
        rows.append([CONTENDERS[name], f"{own.seconds:.1f}", f"{own.gib:.2f}"])
        report.find(f"{CONTENDERS[name]}, {precision}", f"{own.seconds:.1f} s, {own.gib:.2f} GiB")
        report.keep(name, {"precision": precision, "seconds": own.seconds, "gib": own.gib})
    size, windows = " x ".join(map(str, work.sizes.image)), count_windows(work.sizes.image, work.sizes.patch, 0.5)
    tell(f"prediction of {size}, {windows} windows, {precision}", ("run by", "s", "GiB"), rows)
    mean = float((found["fused"].probabilities - found["plain"].probabilities).abs().mean())
    agree = float((found["fused"].classes == found["plain"].classes).float().mean())
    report.keep("fused against plain", {"mean_difference": mean, "same_classes": agree})
    most = MOST_MEAN_DIFFERENCE[precision]
    told = f"probabilities differ by {mean:.1e} in the mean; {agree:.2%} of the classes are the same"
    report.require("fused against plain", told, f"at most {most}", held=mean <= most)


def predict(work: Work, name: str, image: Tensor, precision: str) -> Prediction:
    """Predict an image (1, D, H, W) by a contender, in eval mode.

    On a CPU the networks run in float32, as they do without autocast.
    """
    _, run_by = make_contender(name, work.sizes.network, work.device)
    run_by.eval()
    options: dict[str, Any] = {
        "batch_size": work.sizes.batch,
        "device": work.device,
        "amp_dtype": PRECISIONS[precision] if work.on_gpu and precision != "float32" else None,
    }
    with torch.no_grad():  # compiles, and lets cuDNN choose
        list(predict_planes([run_by], image[:, : work.sizes.patch[0]], work.sizes.patch, step=1.0, **options))
    forget_memory(work)
    start = time.perf_counter()
    classes, kept = [], []
    every = max(1, image.shape[1] // COMPARED)
    for index, plane in enumerate(predict_planes([run_by], image, work.sizes.patch, **options)):
        classes.append(plane.argmax(0).to(torch.uint8).cpu())
        if index % every == 0:
            kept.append(plane.cpu())
    seconds = time.perf_counter() - start
    return Prediction(torch.stack(classes), torch.stack(kept), seconds, peak_memory(work) / 2**30)
