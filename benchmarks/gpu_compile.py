"""Compile the fused path's Triton kernels for GPUs that are not there, and read what the assembler says of them.

The kernels of a step are recorded on torch's meta device with the shapes and dtypes of that step, so what is compiled
is what a GPU would start. `ptxas` comes with triton; `cuobjdump`, beside it, tells registers and spilled bytes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_networks import make_contender
from benchmarks.gpu_options import PRECISIONS, Work
from benchmarks.gpu_report import Report, tell

CHOSEN = 48  # values of masks are unknown here, and kernels depend on the number alone
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


def run(work: Work, report: Report) -> None:
    """Tell registers and spilled bytes of every kernel of a fused step, compiled for each GPU and precision."""
    tell_usage(work, report, lambda dtype: variants_of_step(work, dtype, "fused"))


def tell_usage(work: Work, report: Report, variants_in: Callable[[torch.dtype], list[Variant]]) -> None:
    """Compile the kernels of each precision for each GPU; tell what they use, and require that none spills."""
    if find_spec("triton") is None:
        report.find("kernels", "left out: triton is not installed (torch's CUDA wheels bring it)")
        return
    rows = []
    for precision in work.precisions:
        variants = variants_in(PRECISIONS[precision])
        for capability in work.capabilities:
            usages = [compile_for(variant, capability) for variant in variants]
            for name in dict.fromkeys(usage.variant.name for usage in usages):
                own = [usage for usage in usages if usage.variant.name == name]
                most = max(usage.registers for usage in own), max(usage.spilled for usage in own)
                rows.append([precision, str(capability), name, str(len(own)), *map(str, most)])
            spilled = sorted({usage.variant.name for usage in usages if usage.spilled})
            found = f"{len(usages)} variants, spilled by {', '.join(spilled) or 'none'}"
            report.require(f"{precision}, sm_{capability}", found, "none", held=bool(usages) and not spilled)
            report.keep(f"{precision} sm_{capability}", {"variants": len(usages), "spilled": spilled})
    columns = "precision", "sm", "kernel", "variants", "registers, most", "spilled bytes, most"
    tell("Triton kernels", columns, rows, left=3)


def variants_of_step(work: Work, dtype: torch.dtype, contender: str) -> list[Variant]:
    """Return the kernels that a training step of the work starts on a GPU: parameters are float32, as with autocast."""
    network, run_by = make_contender(contender, work.sizes.network, "cpu")
    run_by.dtype = dtype
    network.to("meta")
    x = torch.empty(work.sizes.batch, 1, *work.sizes.patch, device="meta")
    with recording() as variants:
        logits = run_by(x)
        torch.autograd.backward(logits, [torch.empty_like(one) for one in logits])
    return variants


@dataclass(frozen=True)
class Variant:
    """A kernel as it is started: types of its arguments, constants, which are multiples of 16, and options."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        name: str = self.kernel.fn.__name__
        return name


@dataclass(frozen=True)
class Usage:
    """What a compiled variant uses of a multiprocessor."""

    variant: Variant
    capability: int
    registers: int
    spilled: int  # bytes of stack and local memory, for each thread


@contextmanager
def recording() -> Iterator[list[Variant]]:
    """Collect the variants that fused operations on the meta device would start on a GPU."""
    from triton.runtime.jit import JITFunction

    found: dict[Variant, None] = {}

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found[variant_of(kernel, args, kwargs)] = None

    variants: list[Variant] = []
    with mock.patch.object(JITFunction, "run", record), _Launches():
        yield variants
    variants.extend(found)


class _Launches(TorchDispatchMode):
    """Calls the launcher of every fused operation besides the operation itself.

    For the inputs of fusion blocks it calls also that of `CHOSEN` channels, as masks of groups do.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from e2enet.network.fused import launch
        from e2enet.network.fused.operations import PREPARE, TRAFFIC, launcher

        if func in TRAFFIC:
            launcher(func)(*args)
        if func is PREPARE.default and len(args[0]) > 1:
            given = [*args[:-1], args[0][0].new_empty(CHOSEN, dtype=torch.int64)]
            launch.prepare(*given)
        return func(*args, **(kwargs or {}))


def variant_of(kernel: Any, args: Sequence[Any], options: dict[str, Any]) -> Variant:
    """Return how triton would specialise a kernel for arguments, all given by position, and options such as warps."""
    signature, constants, aligned = [], [], []
    for index, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr or (type(value) is int and value == 1):
            kind = "constexpr"
            constants.append((parameter.name, value))
        elif isinstance(value, Tensor):
            kind = TYPES[value.dtype]
            aligned.append(index)
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(index)
        signature.append((parameter.name, kind))
    return Variant(kernel, tuple(signature), tuple(constants), tuple(aligned), tuple(options.items()))


def compile_for(variant: Variant, capability: int) -> Usage:
    """Compile a variant for a compute capability, such as 90, and return what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    positions = {parameter.name: (index,) for index, parameter in enumerate(variant.kernel.params)}
    source = ASTSource(
        variant.kernel,
        signature=dict(variant.signature),
        constexprs={positions[name]: value for name, value in variant.constants},
        attrs={(index,): [["tt.divisibility", 16]] for index in variant.aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(variant.options))
    registers, stack, _, local = _usage(compiled.asm["cubin"])
    return Usage(variant, capability, registers, stack + local)


def _usage(cubin: bytes) -> list[int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    match = USAGE.search(done.stdout)
    if match is None:
        raise RuntimeError(f"{tool} told no registers: {done.stdout}")
    return [int(number) for number in match.groups()]
