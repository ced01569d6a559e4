"""The paper's setting of `benchmarks.engine`: small patches, one at a time and many at once, beside two ONNX runtimes.

The paper timed patches of 32 x 32 x 32 in DeepSparse, a runtime that is no longer maintained: latency and throughput.
Latency is the time of one patch, throughput the patches per second of a batch (64). Base 48, 16 classes, S = 0.8 (each
fusion layer keeps a fifth of its kernels), float32, the full-resolution output only. Six levels with strides (1,2,2),
then four (2,2,2), for E2ENet and nnU-Net's U-Net alike: the deepest level has 2 x 1 x 1 voxels. Five strides (2,2,2)
would leave one voxel there, of which an instance norm is not defined.

Networks are E2ENet with its masks, E2ENet with dense fusion, and PlainConvUNet. `torch` runs all three, with
`keep_freed_memory`. `torch-malloc` runs the U-Net with the C library's own settings of malloc, as nnU-Net does; ratios
are not to it, but to the U-Net by `torch`. `compact` is the engine with active kernels only, `compact-auto` with the
fastest way of each layer (timed before). `onnxruntime` and `openvino` run the models that `export_onnx` writes, in
which inactive kernels are zeros. ONNX has no convolution over a list of kernels, so active kernels alone have no ONNX
form.

Every contender runs in a process of its own, in turns. Its logits are compared with torch's, patch by patch, before
anything is timed; a contender with other logits ends the benchmark. A process times single patches `--runs` times and
one batch, each after an untimed one. Ratios are those of medians over all processes: "1.26x" means 1.26 times as fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import Table, new_table, run_worker, show, timed_seconds
from benchmarks.network import STRIDES, make_network
from benchmarks.onnx import RUNTIMES, export_network, masked_network, open_runtime

MODELS = {"e2enet": "E2ENet, masked", "e2enet-dense": "E2ENet, dense fusion", "plainconvunet": "PlainConvUNet"}
ENGINES = ("compact", "compact-auto")
ONLY = {"torch-malloc": "plainconvunet"} | dict.fromkeys(ENGINES, "e2enet")  # runners of a single model
RUNNERS = ("torch", "torch-malloc", *ENGINES, *RUNTIMES)
DISTINCT = 4  # patches of a batch that differ; the others repeat them
ALLOWED = 1e-3  # largest difference of a logit, by the largest logit: bfloat16 is beyond
Contender = tuple[str, str]  # a model and what runs it


def compare_paper(options: argparse.Namespace) -> None:
    """Print latency and throughput of every contender for each density, patch and number of threads."""
    missing = left_out()
    for what, reason in missing.items():
        print(f"{what} left out: {reason}")
    contenders = choose(options.models or list(MODELS), options.runners or RUNNERS, missing)
    for density, patch in product(options.densities, options.patches):
        require_strides(patch)
        with TemporaryDirectory() as folder:
            given = ["--folder", folder, "--density", str(density), "--patch", patch]
            names = dict.fromkeys(model for model, _ in contenders)
            exported = any(runner in RUNTIMES for _, runner in contenders)
            run_worker("benchmarks.engine_paper", [*given, "--write", *names, *["--onnx"] * exported])
            for threads in options.threads:
                work = [*given, "--threads", str(threads), "--batch", str(options.batch), "--runs", str(options.runs)]
                found = in_turns(contenders, options.rounds, work)
                for table in tables(found, options.batch, f"S = {1 - density:g}, {patch}, {threads} thread(s)"):
                    show(table)


def left_out() -> dict[str, str]:
    """Return which models and runners cannot be measured here, and why."""
    missing = {}
    if find_spec("dynamic_network_architectures") is None:
        missing["plainconvunet"] = "dynamic-network-architectures is not installed; there are no ratios to the U-Net"
    for runtime in RUNTIMES:
        absent = [name for name in (runtime, "onnx", "onnxscript") if find_spec(name) is None]
        if absent:
            missing[runtime] = f"{', '.join(absent)} not installed"
    return missing


def choose(models: Sequence[str], runners: Sequence[str], missing: Mapping[str, str]) -> list[Contender]:
    """Return the contenders: chosen models by chosen runners, always with the U-Net and with torch, if not missing."""
    return [
        (model, runner)
        for runner, model in product(RUNNERS, MODELS)
        if (runner in runners or runner == "torch")
        and (model in models or model == "plainconvunet")
        and ONLY.get(runner, model) == model
        and not {model, runner} & set(missing)
    ]


def require_strides(patch: str) -> None:
    """Raise SystemExit if a patch "DxHxW" does not suit the networks."""
    steps = [math.prod(factors) for factors in zip(*STRIDES, strict=True)]
    sizes = [int(edge) for edge in patch.split("x")]
    fits = len(sizes) == 3 and all(size and size % step == 0 for size, step in zip(sizes, steps, strict=True))
    if not fits or sizes == steps:
        depth, height, width = steps
        raise SystemExit(
            f"--patches {patch}: expected multiples of {depth}, {height} and {width}, and more than "
            f"{depth}x{height}x{width}"
        )


def in_turns(contenders: Sequence[Contender], rounds: int, work: Sequence[str]) -> dict[Contender, dict[str, float]]:
    """Measure every contender once a round, each time in a fresh process without cached choices; return medians."""
    found: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    for _, (model, runner) in product(range(rounds), contenders):
        with TemporaryDirectory() as cache:
            figures = run_worker(
                "benchmarks.engine_paper",
                [*work, "--model", model, "--runner", runner],
                environment={"XDG_CACHE_HOME": cache},
            )
        found[model, runner].append(figures)
    return {
        contender: {
            "latency": statistics.median(value for row in rows for value in row["latencies"]),
            "batch": statistics.median(row["batch"] for row in rows),
            "difference": max(row["difference"] for row in rows),
        }
        for contender, rows in found.items()
    }


def tables(found: Mapping[Contender, Mapping[str, float]], batch: int, where: str) -> list[Table]:
    """Return the tables of latency and of throughput; a ratio is empty if its other network was not measured."""
    made = []
    for key, title, unit in (
        ("latency", "latency of one patch", "ms"),
        ("batch", f"throughput of {batch} patches at once", "patches/s"),
    ):
        columns = (unit, "x torch's U-Net", "x the same runner's", "x dense fusion", "largest difference")
        table = new_table(f"{title}, float32, {where}", ("network", "by", *columns), left=2)
        for (model, runner), figures in found.items():
            own = runner if runner in RUNTIMES else "torch"
            ratios = [
                speed_ratio(found, key, (model, runner), ("plainconvunet", "torch")),
                speed_ratio(found, key, (model, runner), ("plainconvunet", own)) if own == runner != "torch" else "",
                speed_ratio(found, key, (model, runner), ("e2enet-dense", own)) if model == "e2enet" else "",
            ]
            seconds = figures[key]
            value = f"{1e3 * seconds:.1f}" if key == "latency" else f"{batch / seconds:.2f}"
            table.add_row(MODELS[model], runner, value, *ratios, f"{figures['difference']:.0e}")
        made.append(table)
    return made


def speed_ratio(
    found: Mapping[Contender, Mapping[str, float]], key: str, contender: Contender, other: Contender
) -> str:
    """Return how many times as fast as another one a contender is; empty if there is nothing to compare."""
    if other not in found or other == contender:
        return ""
    return f"{found[other][key] / found[contender][key]:.2f}x"


def worker(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what one process of the comparison does; return its figures."""
    parser = argparse.ArgumentParser(description="A process of `python -m benchmarks.engine --parts paper`.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--density", type=float, required=True)
    parser.add_argument("--patch", required=True)
    parser.add_argument("--write", nargs="+", choices=MODELS)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--runner", choices=RUNNERS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--runs", type=int)
    options = parser.parse_args(arguments)
    if options.write:
        write(options)
        return {}
    return measure(options)


def write(options: argparse.Namespace) -> None:
    """Write some patches, torch's logits of each, one by one, and the ONNX models if they are asked for."""
    import numpy as np
    import torch

    size = tuple(map(int, options.patch.split("x")))
    patches = torch.randn(DISTINCT, 1, *size, generator=torch.Generator().manual_seed(1))
    for name in options.write:
        network = make_model(name, options.density)
        with torch.inference_mode():
            logits = torch.cat([network(patch[None]) for patch in patches])
        np.savez(options.folder / f"{name}.npz", patches=patches.numpy(), logits=logits.numpy())
        if options.onnx:
            export_network(network, STRIDES, size, options.folder / f"{name}.onnx")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of single patches and of a batch, and the largest difference of a logit, by the largest logit."""
    import numpy as np

    with np.load(options.folder / f"{options.model}.npz") as pair:
        patches, expected = pair["patches"], pair["logits"]
    single = runner(options, (1, *patches.shape[1:]))
    differences = [
        difference(options, single(patch[None]), logits[None]) for patch, logits in zip(patches, expected, strict=True)
    ]
    latencies = timed_seconds(lambda: single(patches[:1]), options.runs)

    repeated = np.arange(options.batch) % len(patches)
    batch = patches[repeated]
    several = runner(options, batch.shape) if options.runner == "openvino" else single
    logits = several(batch)
    differences += [
        difference(options, one[None], expected[number][None]) for one, number in zip(logits, repeated, strict=True)
    ]
    del logits
    (seconds,) = timed_seconds(lambda: several(batch), 1)
    return {"latencies": latencies, "batch": seconds, "difference": max(differences)}


def difference(options: argparse.Namespace, found: Any, expected: Any) -> float:
    """Return the largest difference of a logit, by the largest logit; raise SystemExit if it is not rounding."""
    import numpy as np

    who = f"{MODELS[options.model]} by {options.runner}"
    if found.shape != expected.shape:
        raise SystemExit(f"{who}: logits of shape {found.shape}; torch's have {expected.shape}")
    value = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not value <= ALLOWED:  # NaN too
        raise SystemExit(f"{who}: a logit differs from torch's by {value:.1e} of the largest; {ALLOWED:g} allowed")
    return value


def runner(options: argparse.Namespace, shape: Sequence[int]) -> Callable[[Any], Any]:
    """Return a contender's forward pass of patches as an array (B, 1, D, H, W), which returns logits as an array."""
    if options.runner in RUNTIMES:
        return open_runtime(options.runner, options.folder / f"{options.model}.onnx", options.threads, shape)
    import torch

    from e2enet.network.engine.inference import CompactNetwork
    from e2enet.system.memory import give_back_freed_memory, keep_freed_memory

    torch.set_num_threads(options.threads)
    if options.runner != "torch-malloc":
        keep_freed_memory()
    network = make_model(options.model, options.density)
    if options.runner in ENGINES:
        network = CompactNetwork(network, choose=options.runner == "compact-auto")
        gc.collect()
        give_back_freed_memory()  # both as e2enet predict does

    def forward(patches: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(patches)).numpy()

    return forward


def make_model(name: str, density: float) -> Any:
    """Return a network in eval mode that returns the full-resolution output, the same in every process."""
    import torch

    if name == "e2enet":
        return masked_network(density)
    torch.manual_seed(0)
    network = make_network(name.split("-")[0]).eval()
    if name == "plainconvunet":
        network.decoder.deep_supervision = False
    return network


if __name__ == "__main__":
    print(json.dumps(worker()))
