"""Time and memory of E2ENet's forward pass and training step against a plain transcription and nnU-Net's U-Net.

    python -m benchmarks.network                       # CPU, and GPU if there is one
    python -m benchmarks.network --precisions float32 --runs 7
    python -m benchmarks.network --contenders e2enet e2enet-checkpointed    # these alone; e2enet is always measured
    python -m benchmarks.network --devices cuda --patch 128 128 128 --batch 2 --precisions bfloat16

Setting: base 48, 16 classes, strides (1,2,2) then four (2,2,2), one patch of 32 x 96 x 96. `forward` is eval mode
without gradients. `step` is forward + backward of every head in training mode. `outside convs` is the share of the
step's time outside convolutions (torch's profiler). Networks run one after the other, each in a process of its own, so
memory peaks do not mix. Times are medians of warm runs. Contenders:

- e2enet: this package's network as `e2enet train` runs it, on the CPU with `keep_freed_memory`;
- e2enet-fused: e2enet with `engine=fused` and `training.engine=fused`. In bfloat16 it computes in it on any CPU;
  e2enet keeps to float32 on one without AMX;
- e2enet-checkpointed: the same with `training.checkpoint_activations=true`;
- e2enet-groups: e2enet with masks of groups of 16 output channels, density 0.2, as `training.engine=sparse` runs it on
  a GPU (unless named, on a GPU only);
- e2enet-compiled: e2enet with `training.compile=true` (likewise);
- e2enet-malloc: e2enet with the C library's own settings of malloc;
- transcription: the same network written plainly (`benchmarks/transcription.py`): pad, chunk, roll, cat;
- transcription-kept: the transcription with `keep_freed_memory`;
- plainconvunet: nnU-Net's plain U-Net (features 32..320), from `dynamic-network-architectures`
  (`pip install --no-deps dynamic-network-architectures`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from benchmarks.measuring import median_seconds, new_table, run_worker, show

FOR_GPUS = ("e2enet-groups", "e2enet-compiled")
CONTENDERS = (
    *("e2enet", "e2enet-fused", "e2enet-checkpointed", *FOR_GPUS, "e2enet-malloc"),
    *("transcription", "transcription-kept", "plainconvunet"),
)
KEEP_MEMORY = ("e2enet", "e2enet-fused", "e2enet-checkpointed", *FOR_GPUS, "transcription-kept")
GROUP, DENSITY = 16, 0.2  # of e2enet-groups
CONVOLUTIONS = {
    *("aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::slow_conv3d_forward", "aten::slow_conv3d_backward"),
    *("aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm"),
}
PRECISIONS = ("float32", "bfloat16")
STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure(options.worker, options)))
        return
    import torch

    devices = options.devices or ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if "cuda" in devices and not torch.cuda.is_available():
        raise SystemExit("--devices cuda: torch finds no GPU here; expected --devices cpu")
    print("command: python -m benchmarks.network", *sys.argv[1:])
    print(f"machine: {processor()}, {options.threads} threads, torch {torch.__version__}, {platform.platform()}")
    work = f"patch {options.patch}, batch {options.batch}, base 48, 16 classes"
    print(f"work: {work}; median of {options.runs} warm runs")
    for device in devices:
        contenders = choose(options.contenders, device)
        if device == "cuda":
            print(f"GPU: {torch.cuda.get_device_name()}")
        for precision in options.precisions:
            report(device, precision, {name: run_contender(name, device, precision) for name in contenders})


def choose(named: list[str] | None, device: str) -> list[str]:
    """Return the named contenders, or by default all that are meant for the device."""
    meant = named or [name for name in CONTENDERS if device == "cuda" or name not in FOR_GPUS]
    chosen = [name for name in CONTENDERS if name in {"e2enet", *meant}]
    if "plainconvunet" in chosen and find_spec("dynamic_network_architectures") is None:
        chosen.remove("plainconvunet")
        print("plainconvunet left out: dynamic-network-architectures is not installed")
    return chosen


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all that there are")
    parser.add_argument("--patch", nargs=3, type=int, default=[32, 96, 96], metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_contender(name: str, device: str, precision: str) -> dict[str, float]:
    """Measure one contender in a fresh process and return its figures."""
    given = ["--worker", name, "--device", device, "--precisions", precision]
    return run_worker("benchmarks.network", [*sys.argv[1:], *given])


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds of forward and step, and the peak memory of each in GiB."""
    import torch

    from e2enet.network.dsff import init_masks, set_group_size
    from e2enet.network.fused.network import FusedNetwork
    from e2enet.network.recompute import checkpoint_activations
    from e2enet.system.determinism import set_torch_flags
    from e2enet.system.memory import keep_freed_memory

    if options.device == "cpu":  # as with trainer=cpu and trainer=gpu
        set_torch_flags("warn", "cpu")
    else:
        set_torch_flags(False, "gpu")
    if name in KEEP_MEMORY and options.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.precisions[0])
    network = make_network(name.split("-")[0]).to(device)
    run: Any = network
    if name == "e2enet-checkpointed":
        checkpoint_activations(network)
    elif name == "e2enet-groups":
        set_group_size(network, GROUP)
        init_masks(network, DENSITY, generator=torch.Generator().manual_seed(0))
        run = FusedNetwork(network, groups=True)
    elif name == "e2enet-fused":
        run = FusedNetwork(network)
    elif name == "e2enet-compiled":
        network.compile()
    x = torch.randn(options.batch, 1, *options.patch, device=device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad(), autocast:
            run(x)
        wait()

    def step() -> None:
        with autocast:
            outputs = run(x)
        sum(output.float().mean() for output in outputs).backward()
        network.zero_grad(set_to_none=True)
        wait()

    network.eval()
    if name.startswith("e2enet"):
        network.deep_supervision_in_eval = True  # the others return every head as well
    figures = {"forward_s": median_seconds(forward, options.runs), "forward_gib": peak_gib(device)}
    network.train()
    figures |= {"step_s": median_seconds(step, options.runs), "step_gib": peak_gib(device)}
    return figures | {"outside": share_outside_convolutions(step, device)}


def share_outside_convolutions(step: Callable[[], None], device) -> float:
    """Return the share of a step's time outside convolutions and the products of transposed convolutions."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        start = time.perf_counter()
        step()
        total = 1e6 * (time.perf_counter() - start)
    # Only operators: on a GPU their kernels are additional events that cover the same time.
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    return 1 - sum(value for key, value in times.items() if key in CONVOLUTIONS) / (
        sum(times.values()) if on_gpu else total
    )


def make_network(name: str):
    """Build a contender. Each contender returns every head in training mode."""
    from torch import nn

    if name == "e2enet":
        from e2enet.network import E2ENet

        return E2ENet(1, 16, STRIDES)
    if name == "transcription":
        from benchmarks.transcription import PlainE2ENet

        return PlainE2ENet(1, 16, STRIDES)
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1, 6, [32, 64, 128, 256, 320, 320], nn.Conv3d, [[1, 3, 3]] + [[3, 3, 3]] * 5, [[1, 1, 1], *map(list, STRIDES)],
        2, 16, 2, conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def peak_gib(device) -> float:
    """Return the peak so far: of the device's allocator on a GPU, of the process on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(device: str, precision: str, figures: dict[str, dict[str, float]]) -> None:
    """Print a table: seconds, GiB, and the baselines' time divided by that of e2enet."""
    faster = "e2enet is faster by: forward"
    table = new_table(
        f"{device}, {precision}",
        ("network", "forward s", "peak GiB", "step s", "peak GiB", "outside convs", faster, "step"),
    )
    ours = figures["e2enet"]
    for name, row in figures.items():
        ratios = [f"{row[key] / ours[key]:.2f}x" if name != "e2enet" else "" for key in ("forward_s", "step_s")]
        cells = [f"{row[key]:.3f}" for key in ("forward_s", "forward_gib", "step_s", "step_gib")]
        table.add_row(name, *cells, f"{row['outside']:.0%}", *ratios)
    show(table)


def processor() -> str:
    """Return the processor's name and the matrix extensions that decide bf16 speed."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.read().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if flag in flags]
    missing = [f"no {flag}" for flag in ("avx512f", "amx_tile") if flag not in flags]
    return f"{name} ({', '.join(known + missing)})"


if __name__ == "__main__":
    main()
