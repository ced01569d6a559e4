"""Forward pass of the engine against ONNX runtimes, which multiply every kernel: time, peak memory, and agreement.

    python -m benchmarks.onnx                            # one thread, density 0.2, some minutes
    python -m benchmarks.onnx --threads 2 --densities 0.3 0.2 0.1

Setting: base 48, six levels, strides (1,2,2) then four (2,2,2), 16 classes, a patch of 32 x 96 x 96, batch 1, float32,
the full-resolution output only, as in prediction. Every contender runs in a process of its own, in turns; medians of
warm runs. `engine` is `e2enet predict` with `engine=auto`: active kernels only, where that is faster here. `masked` is
the network as torch runs it. `onnxruntime` and `openvino` run the model of `e2enet export --to onnx`, whose inactive
kernels are zeros; OpenVINO is left out where it is not installed. `difference` is the largest one of a logit from the
masked network's, `largest` the largest logit.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import median_seconds, new_table, run_worker, show
from benchmarks.network import STRIDES, make_network, processor

RUNTIMES = ("onnxruntime", "openvino")
CONTENDERS = ("engine", "masked", *RUNTIMES)
MODEL = "model.onnx"


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(export(options) if options.worker == "export" else measure(options)))
        return
    import torch

    print("command: python -m benchmarks.onnx", *sys.argv[1:])
    versions = [f"{name} {__import__(name).__version__}" for name in RUNTIMES if find_spec(name)]
    print(f"machine: {processor()}, torch {torch.__version__}, {', '.join(versions)}")
    for threads, density in product(options.threads, options.densities):
        compare(options, threads, density)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2])
    parser.add_argument("--patch", default="32x96x96", metavar="DxHxW")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender, in turns")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, threads: int, density: float) -> None:
    """Print times, peaks and agreement of every contender."""
    contenders = [name for name in CONTENDERS if name != "openvino" or find_spec(name)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with TemporaryDirectory() as folder:
        given = ["--densities", str(density), "--threads", str(threads), "--patch", options.patch, "--folder", folder]
        run_worker("benchmarks.onnx", [*given, "--worker", "export"])
        for _, name in product(range(options.rounds), contenders):
            arguments = [*given, "--runs", str(options.runs), "--worker", name]
            with TemporaryDirectory() as cache:  # the engine's choices are measured anew
                found[name].append(run_worker("benchmarks.onnx", arguments, environment={"XDG_CACHE_HOME": cache}))
    table = new_table(
        f"forward, float32, patch {options.patch}, density {density:g}, {threads} thread(s)",
        ("", "s", "time / engine's", "peak GiB", "difference", "largest"),
    )
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
    }
    for name, row in middle.items():
        ratio = f"{row['seconds'] / middle['engine']['seconds']:.2f}"
        table.add_row(
            name,
            f"{row['seconds']:.2f}",
            ratio,
            f"{row['gib']:.2f}",
            f"{row['difference']:.1e}",
            f"{row['largest']:.1f}",
        )
    show(table)


def export(options: argparse.Namespace) -> dict[str, float]:
    """Write the ONNX model, an input and the masked network's logits for it."""
    import numpy as np
    import torch

    network, patch = masked_network(options.densities[0]), tuple(map(int, options.patch.split("x")))
    export_network(network, STRIDES, patch, options.folder / MODEL)
    image = torch.randn(1, 1, *patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.savez(options.folder / "pair.npz", image=image.numpy(), logits=network(image).numpy())
    return {}


def export_network(network: Any, strides: Sequence[Sequence[int]], patch: tuple[int, ...], path: Path) -> None:
    """Write a network of one channel and 16 classes as ONNX, as `e2enet export` does."""
    from e2enet.data.formats.scheme import LabelScheme
    from e2enet.data.planning.plan import Plan
    from e2enet.export.onnx_model import export_onnx
    from e2enet.inference.checkpoint import LoadedModel

    plan = Plan(2, (1.0, 1.0, 1.0), patch, tuple(strides), 1, ({"scheme": "none"},), patch)  # type: ignore[arg-type]
    scheme = LabelScheme({label: str(label) for label in range(16)})
    export_onnx(LoadedModel(Path(), network, plan, scheme, ("CT",), (), ".nii.gz", ""), path)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds, this process' peak memory in GiB, and how far the logits are from the masked network's."""
    import numpy as np

    from e2enet.system.memory import forget_peak, resident_peak

    with np.load(options.folder / "pair.npz") as pair:
        image, expected = pair["image"], pair["logits"]
    run = runner(options, image)
    forget_peak()
    seconds = median_seconds(run, options.runs)
    peak = resident_peak() / 2**30
    difference = float(np.abs(np.asarray(run()) - expected).max())
    return {"seconds": seconds, "gib": peak, "difference": difference, "largest": float(np.abs(expected).max())}


def runner(options: argparse.Namespace, image: Any) -> Callable[[], Any]:
    """Return a contender's forward pass of the image, as a function that returns logits."""
    threads = options.threads[0]
    if options.worker in RUNTIMES:
        run = open_runtime(options.worker, options.folder / MODEL, threads)
        return lambda: run(image)
    import torch

    from e2enet.network.engine import select_engine
    from e2enet.system.memory import give_back_freed_memory, keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    network: Any = masked_network(options.densities[0])
    if options.worker == "engine":
        network = select_engine(network, "auto", device=torch.device("cpu"), patch_size=image.shape[2:])
        gc.collect()
        give_back_freed_memory()  # both as e2enet predict does
    tensor = torch.from_numpy(image)

    def forward() -> Any:
        with torch.inference_mode():
            return network(tensor).numpy()

    return forward


def open_runtime(name: str, path: Path, threads: int, shape: Sequence[int] | None = None) -> Callable[[Any], Any]:
    """Return what an ONNX runtime makes of a model: the image as an array (B, C, D, H, W) to logits.

    shape: OpenVINO plans for inputs of this one alone; None for any.
    """
    if name == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image})[0]
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if shape is not None:
        model.reshape(list(shape))
    # By default it computes in bfloat16 where the processor has instructions for it.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled([image])[0]


def masked_network(density: float) -> Any:
    """Return the network in eval mode with random weights and masks, the same in every process."""
    import torch

    from e2enet.network.dsff import init_masks

    torch.manual_seed(0)
    network = make_network("e2enet").eval()
    init_masks(network, density, generator=torch.Generator().manual_seed(0))
    return network


if __name__ == "__main__":
    main()
