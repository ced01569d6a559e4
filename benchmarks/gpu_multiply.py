"""Compile the Triton kernels that multiply, which only an implicit step starts, as `gpu_compile` does the others.

There are many variants, and each takes a second or more. In float32 they are compiled with TF32 and without.
"""

from __future__ import annotations

from functools import partial
from unittest import mock

import torch

from benchmarks.gpu_compile import Variant, tell_usage, variants_of_step
from benchmarks.gpu_options import Work
from benchmarks.gpu_report import Report


def run(work: Work, report: Report) -> None:
    """Tell registers and spilled bytes of the kernels that an implicit step starts and a fused one does not."""
    tell_usage(work, report, lambda dtype: own_variants(work, dtype))


def own_variants(work: Work, dtype: torch.dtype) -> list[Variant]:
    """Return those kernels; with float32 factors rounded to TF32 and as they are, where a dtype has them."""
    from e2enet.network.fused import launch_implicit

    known = {variant.name for variant in variants_of_step(work, dtype, "fused")}
    found: dict[Variant, None] = {}
    precision_of = launch_implicit.precision_of
    for allowed in (True, False):
        chosen = partial(precision_of, allow_tf32=allowed)
        with mock.patch.object(launch_implicit, "precision_of", lambda dtype, chosen=chosen, **_: chosen(dtype)):
            found |= dict.fromkeys(variants_of_step(work, dtype, "implicit"))
    return [variant for variant in found if variant.name not in known]
