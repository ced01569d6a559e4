"""The GPU path: its kernels and bytes, counted and compiled without a GPU.

    python -m benchmarks.gpu                               # every part
    python -m benchmarks.gpu --parts count                 # kernels, bytes and memory of a training step
    python -m benchmarks.gpu --parts compile               # every Triton kernel for GPUs that need not be there

Work: batch 2 of 128 x 128 x 128, one channel, base 48, six levels, 16 classes, density 0.2, every head. `count` runs on
torch's meta device: every operation is one kernel that reads its inputs and writes its outputs once; the fused path
states its own. nnU-Net's plain U-Net is counted alike (`pip install --no-deps dynamic-network-architectures`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.measuring import new_table, show
from benchmarks.network import STRIDES, make_network, processor
from e2enet.network import E2ENet
from e2enet.network.dsff import init_masks
from e2enet.network.fused.network import FusedNetwork

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DENSITY = 0.2


def main() -> None:
    options = parse_arguments()
    print("command: python -m benchmarks.gpu", *sys.argv[1:])
    print(f"machine: {processor()}, torch {torch.__version__}")
    for part in options.parts:
        PARTS[part](options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--capabilities", nargs="+", type=int, default=[80, 90, 100], help="of GPUs: 90 is an H100")
    parser.add_argument("--patch", nargs=3, type=int, default=[128, 128, 128], metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    return parser.parse_args()


def count(options: argparse.Namespace) -> None:
    """Print kernels, bytes and what is saved for the backward pass, of a step in half precision."""
    from benchmarks.gpu_count import count_step

    network = on_meta(torch.float16)
    rows: dict[str, Any] = {"E2ENet by torch": network, "E2ENet, fused": FusedNetwork(network)}
    if find_spec("dynamic_network_architectures") is None:
        print("nnU-Net's U-Net left out: dynamic-network-architectures is not installed")
    else:
        rows["nnU-Net's PlainConvUNet"] = make_network("plainconvunet").to("meta", torch.float16).train()
    columns = "kernels, forward", "backward", "GB, forward", "backward", "GB saved", "waits"
    table = new_table("a training step in half precision, counted", ("network", *columns))
    x = torch.empty(options.batch, 1, *options.patch, device="meta", dtype=torch.float16)
    for name, run in rows.items():
        network.zero_grad()
        forward, backward, saved = count_step(run, x)
        gigabytes = [f"{value / 1e9:.1f}" for value in (forward.bytes, backward.bytes, saved)]
        table.add_row(
            name, str(forward.kernels), str(backward.kernels), *gigabytes, str(forward.waits + backward.waits)
        )
    show(table)


def compile_kernels(options: argparse.Namespace) -> None:
    """Print registers and spilled bytes of every kernel of a step, compiled for each GPU and precision."""
    if find_spec("triton") is None:
        print("compile left out: triton is not installed (torch's CUDA wheels bring it)")
        return
    from benchmarks.gpu_compile import compile_for, recording

    table = new_table(
        "Triton kernels", ("precision", "sm", "kernel", "variants", "registers, most", "spilled bytes, most"), left=3
    )
    for precision in options.precisions:
        dtype = PRECISIONS[precision]
        x = torch.empty(options.batch, 1, *options.patch, device="meta", dtype=dtype)
        with recording() as variants:
            logits = FusedNetwork(on_meta(dtype))(x)
            torch.autograd.backward(logits, [torch.empty_like(one) for one in logits])
        for capability in options.capabilities:
            usages = [compile_for(variant, capability) for variant in variants]
            for name in dict.fromkeys(usage.variant.name for usage in usages):
                own = [usage for usage in usages if usage.variant.name == name]
                most = max(usage.registers for usage in own), max(usage.spilled for usage in own)
                table.add_row(precision, str(capability), name, str(len(own)), *map(str, most))
    show(table)


def on_meta(dtype: torch.dtype) -> E2ENet:
    """Return the network of the work on the meta device, in training mode."""
    network = E2ENet(1, 16, STRIDES)
    init_masks(network, DENSITY, generator=torch.Generator().manual_seed(0))
    return network.to("meta", dtype).train()


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"count": count, "compile": compile_kernels}

if __name__ == "__main__":
    main()
