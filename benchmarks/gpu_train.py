"""Training steps with DSFF and a gradient scaler that skips some; DSFF's invariants after each.

They are what `DSFF` promises: inactive weights and their moments are exactly zero, every layer keeps its number of
active kernels, and a step that the scaler skips is not counted and changes no weight.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_loop import OPTIMIZERS, Loop
from benchmarks.gpu_options import Work
from benchmarks.gpu_report import Report
from e2enet.network.dsff import expand_mask, fusion_layers


def run(work: Work, report: Report) -> None:
    """Train with SGD for all steps and with a fused AdamW, which a scaler calls even to skip, for a quarter of them."""
    for index, optimizer in enumerate(OPTIMIZERS):
        steps = max(8, work.sizes.train_steps // (4 if index else 1))
        overflows = {1, steps // 3, steps // 3 + 1, steps - 2}
        start = time.perf_counter()
        found = train(Loop(work, optimizer, steps=steps, overflows=overflows), steps)
        seconds = time.perf_counter() - start
        report.keep(optimizer, {**found, "seconds": seconds})
        broken = found["broken"]
        told = "; ".join(broken[:3]) + f"; {len(broken) - 3} more" * (len(broken) > 3)
        value = told or f"{steps} steps, {found['skipped']} skipped, {found['updates']} updates, {seconds:.0f} s"
        report.require(f"{optimizer}: invariants after each step", value, "all held", held=not broken)
        first, last = found["first_loss"], found["last_loss"]
        report.require(f"{optimizer}: loss", f"{first:.3f} to {last:.3f}", "a fall", held=last < first)


def train(loop: Loop, steps: int) -> dict[str, Any]:
    """Run the steps; return which invariants broke, how many steps were skipped, updates, and losses.

    `first_loss` and `last_loss` are means of a quarter of the steps.
    """
    losses, broken, skipped = [], [], 0
    invariants = Invariants(loop)
    for step in range(steps):
        loss, was_skipped = loop.step()
        losses.append(loss)
        skipped += was_skipped
        broken += [f"step {step}: {problem}" for problem in invariants.broken(was_skipped, step - skipped + 1)]
        if step in loop.overflows and not was_skipped:
            broken.append(f"step {step}: its gradient was infinite, and the scaler did not skip it")
    if loop.masks.num_updates == 0:
        broken.append("no update of the masks")
    quarter = steps // 4
    return {
        "broken": broken,
        "skipped": skipped,
        "updates": loop.masks.num_updates,
        "first_loss": sum(losses[:quarter]) / quarter,
        "last_loss": sum(losses[-quarter:]) / quarter,
    }


class Invariants:
    """What must hold after every step of a loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.layers = fusion_layers(loop.network)
        self.active = self._active()
        self.before = self._state()

    def broken(self, skipped: bool, counted: int) -> list[str]:
        """Return what does not hold. counted: the steps so far without skipped ones."""
        masks, problems = self.loop.masks, []
        left = self._left_in_inactive()
        if left:
            problems.append(f"{left} weights or moments of inactive kernels are not zero")
        active = self._active()
        changed = [name for name, count in active.items() if count != self.active[name]]
        if changed:
            problems.append(f"another number of active kernels in {', '.join(changed)}")
        if masks.step != counted:
            problems.append(f"DSFF counted {masks.step} steps; expected {counted}")
        after = self._state()
        same = all(torch.equal(old, new) for old, new in zip(self.before, after, strict=True))
        if same is not skipped:
            problems.append("a skipped step changed weights or masks" if skipped else "a step changed no weight")
        if not all(bool(value.isfinite().all()) for value in after):
            problems.append("a weight is not finite")
        self.before = after
        return problems

    def _left_in_inactive(self) -> int:
        """Return how many weights and moments of inactive kernels are not zero; NaN is not."""
        found = torch.zeros((), dtype=torch.int64, device=self.loop.work.device)
        for layer in self.layers.values():
            state = self.loop.optimizer.state.get(layer.weight, {}).values()
            moments = [one for one in state if isinstance(one, Tensor) and one.shape == layer.weight.shape]
            for values in (layer.weight, *moments):
                found += ((values != 0) & ~expand_mask(layer.kernel_mask, values)).sum()
        return int(found)

    def _active(self) -> dict[str, int]:
        counts = torch.stack([layer.kernel_mask.sum() for layer in self.layers.values()]).tolist()
        return dict(zip(self.layers, counts, strict=True))

    def _state(self) -> list[Tensor]:
        model: nn.Module = self.loop.network
        return [value.detach().clone() for value in model.state_dict().values()]
