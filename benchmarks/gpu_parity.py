"""Logits and gradients of plain, fused, implicit and groups against the plain network in float64, in every precision.

The error of a tensor is its largest difference from float64, as a share of the largest value there; medians over
tensors are of root mean squares. Weights, input and gradients of the logits are the same in every precision. Gradients
of inactive kernels are left out: groups do not compute them, and DSFF sets them to zero.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_networks import exact_float32, mask, noise, run_step
from benchmarks.gpu_options import PRECISIONS, Network, Work
from benchmarks.gpu_report import Report, tell
from e2enet.network import E2ENet
from e2enet.network.dsff import expand_mask, fusion_layers
from e2enet.network.fused.network import FusedNetwork

# Two ways to round differ by luck: the median over tensors by little, the largest error by more. A bound is that many
# times the plain network's error, and one unit of the last place more.
MOST_IN_MEDIAN, MOST_IN_LARGEST = 1.5, 3.0
RUNS: dict[str, Any] = {
    "plain": lambda network: network,
    "fused": FusedNetwork,
    "implicit": partial(FusedNetwork, implicit=True),
    "groups": partial(FusedNetwork, groups=True),
}


@dataclass(frozen=True)
class Errors:
    """Errors of a step: the largest of logits and of gradients, and medians over tensors, by root mean square."""

    logits: float
    median_logits: float
    gradients: float
    median_gradients: float

    def no_worse_than(self, other: Errors, unit: float) -> bool:
        """Return whether these are at most those of another way to compute the same, up to luck."""
        factors = MOST_IN_LARGEST, MOST_IN_MEDIAN, MOST_IN_LARGEST, MOST_IN_MEDIAN
        pairs = zip(vars(self).values(), vars(other).values(), factors, strict=True)
        return all(own <= factor * theirs + unit for own, theirs, factor in pairs)


def run(work: Work, report: Report) -> None:
    """Tell the errors of each size, mask and precision, and require that the others are no worse than plain."""
    exact_float32()
    rows = []
    for name, (sizes, shape) in work.sizes.parity.items():
        for groups in (False, True):
            for precision, errors in compare(work, sizes, shape, groups=groups):
                masks = "groups of 16" if groups else "kernels"
                unit = torch.finfo(PRECISIONS[precision]).eps
                for contender, found in errors.items():
                    figures = vars(found)
                    rows.append([name, masks, precision, contender, *(f"{value:.1e}" for value in figures.values())])
                    what = f"{name}, {masks}, {precision}, {contender}"
                    report.keep(what, figures)
                    if contender != "plain":
                        plain = errors["plain"]
                        told = f"logits {found.logits:.1e}, gradients {found.gradients:.1e}"
                        expected = f"no worse than plain: {plain.logits:.1e}, {plain.gradients:.1e}"
                        report.require(what, told, expected, held=found.no_worse_than(plain, unit))
    columns = "logits, largest", "median", "gradients, largest", "median"
    tell("relative errors against float64", ("network", "masks", "precision", "run by", *columns), rows, left=4)


def compare(
    work: Work, sizes: Network, shape: tuple[int, ...], *, groups: bool
) -> Iterator[tuple[str, dict[str, Errors]]]:
    """Yield each precision and the errors of those that can run the masks, by name."""
    network = make(sizes, groups=groups).to(work.device)
    x = noise(shape[0], 1, *shape[1:], device=work.device)
    exact = copy.deepcopy(network).double()
    with torch.no_grad():
        heads = [noise(*one.shape, device=work.device, seed=2 + index) for index, one in enumerate(exact(x.double()))]
    wanted = step(exact, exact, x.double(), heads, "float32")
    for precision in work.precisions:
        errors = {}
        for name, make_run in RUNS.items():
            if name != "groups" or groups:
                errors[name] = errors_of(step(network, make_run(network), x, heads, precision), wanted)
        yield precision, errors


def make(sizes: Network, *, groups: bool) -> E2ENet:
    """Return a masked network whose norms have scales and offsets as after some training."""
    torch.manual_seed(0)
    network = E2ENet(1, sizes.num_classes, sizes.strides, base_features=sizes.base_features).train()
    mask(network, groups=groups)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("norm.bias"):
            nn.init.normal_(parameter, 0, 0.2)
    return network


def step(network: E2ENet, run: Any, x: Tensor, heads: list[Tensor], precision: str) -> dict[str, Tensor]:
    """Return the logits and the parameters' gradients of a step by name, without gradients of inactive kernels."""
    logits = run_step(network, run, x, heads, precision)
    found = {f"logits {index}": one.detach().double() for index, one in enumerate(logits)}
    masks = {f"{name}.weight": layer.kernel_mask for name, layer in fusion_layers(network).items()}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.double()
            active = masks.get(name)
            found[name] = grad if active is None else grad * expand_mask(active, grad)
    return found


def errors_of(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Errors:
    """Return the errors of a step's tensors.

    Raises:
        ValueError: they are not those that are wanted.
    """
    if found.keys() != wanted.keys():
        raise ValueError(f"gradients of {sorted(found.keys() ^ wanted.keys())} are missing or too many")
    figures = []
    for of_logits in (True, False):
        names = [name for name in wanted if name.startswith("logits ") is of_logits]
        errors = [relative_errors(found[name], wanted[name]) for name in names]
        figures += [max(largest for largest, _ in errors), statistics.median(typical for _, typical in errors)]
    return Errors(*figures)


def relative_errors(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Return the largest difference as a share of the largest wanted value, and that of their root mean squares.

    Both are infinite if something is not finite, or if there is something where zeros are wanted (the gradient of a
    bias before a norm).
    """
    difference = found - wanted
    largest, scale = float(difference.abs().max()), float(wanted.abs().max())
    if largest == 0:
        return 0.0, 0.0
    if not largest < math.inf or scale == 0:
        return math.inf, math.inf
    return largest / scale, float(difference.norm() / wanted.norm())
