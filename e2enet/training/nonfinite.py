"""NaN or infinite losses and gradients: record the batch, then stop the run or leave the batch out.

Such a step would make every weight NaN. By default the run stops and the recorded batch can be inspected. If the batch
is left out, weights, masks and optimizer stay unchanged; only counters and schedule advance.

On a GPU the host is ahead of the device, and reading a value makes it wait. So a run that stops at the first bad value
reads the values of a step while the device computes the next one. The device itself zeroes gradients that are not
finite, so that weights stay finite until then; what those weights give is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.network.dead_kernels import INTEGERS
from e2enet.system.on_host import OnHost
from e2enet.training.nonfinite_record import Place, gradient_scaler, record_folder, write_record

LEFT_OUT = "left_out"  # marks the output of a training step whose batch is left out


class NonFiniteGuard:
    """Accepts batches and optimizer steps with finite losses and gradients.

    All processes decide together: a batch is one batch over all of them. With a gradient scaler only losses are
    checked, since the scaler checks gradients itself: it skips steps while it searches for its scale.

    Args:
        most_skips: Batches that may be left out in a row, without an optimizer step between them. One more stops the
            run. None stops it at the first.

    Attributes:
        reads_late: Whether values are read a step later, without waiting for the device, if no batch may be left out.
            None: on a GPU.
    """

    def __init__(self, most_skips: int | None) -> None:
        self.most_skips = most_skips
        self.reads_late: bool | None = None
        self.skips = 0
        self.used = 0  # batches of this epoch that were used in a step; `TrainLossLogger` resets it each epoch
        self._batches: list[Mapping[str, Any]] = []  # accumulated for the next optimizer step
        self._losses: list[Tensor] = []  # theirs, if values are read late
        self._unread: list[_Step] = []
        self._norm: tuple[list[tuple[int, int]], Tensor] | None = None

    def check_loss(self, module: pl.LightningModule, loss: Tensor, batch: Mapping[str, Any]) -> bool:
        """Whether to run the backward pass for the loss of a batch.

        Raises:
            InputError: the loss is not finite and the run must stop.
        """
        loss = loss.detach()
        late = self._late(loss.device)
        finite = late or bool(torch.isfinite(loss))
        if late:
            self._losses.append(loss)
        if late or module.trainer.strategy.reduce_boolean_decision(finite):
            # Keep only the ids of earlier batches: their voxels would stay on the device until the step.
            self._batches = [*({"case": earlier["case"]} for earlier in self._batches), batch]
            return True
        self._judge(module, "loss", None if finite else float(loss), [] if finite else [batch])
        return False

    def may_step(self, module: pl.LightningModule) -> bool:
        """Whether to take an optimizer step; gradients are then those of the mean loss of its batches.

        Raises:
            InputError: the gradients are not finite and the run must stop.
        """
        batches, self._batches = self._batches, []
        losses, self._losses = self._losses, []
        if not batches:
            return False
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        # Lightning has divided each loss by `accumulate`. The step may have fewer batches: the last of an epoch, or one
        # with batches left out.
        scale_gradients(gradients, module.trainer.accumulate_grad_batches / len(batches))
        norm = None
        if gradient_scaler(module.trainer) is None:
            norm = get_total_norm(gradients)  # the same on all processes: they have exchanged their gradients
        if losses:
            norm = self._read_later(module, batches, losses, norm, gradients)
        elif norm is not None and not bool(torch.isfinite(norm)):
            self._judge(module, "gradient norm", float(norm), batches)
            return False
        self._norm = None if norm is None else (_state(gradients), norm)
        self.skips = 0
        self.used += len(batches)
        return True

    def take_norm(self, module: pl.LightningModule) -> Tensor | None:
        """Return the norm of the present gradients if `may_step` computed it and nobody changed them since."""
        known, self._norm = self._norm, None
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        return known[1] if known is not None and known[0] == _state(gradients) else None

    def settle(self, module: pl.LightningModule) -> None:
        """Judge all steps so far, waiting for the device if needed; call it before anything of them is kept.

        Raises:
            InputError: a loss or gradient was not finite.
        """
        while self._unread:
            self._judge_late(module, self._unread.pop(0))

    def end_epoch(self, module: pl.LightningModule) -> None:
        """Check at the end of an epoch that it used at least one batch.

        Raises:
            InputError: all of its batches were left out, or a value that was not read yet is not finite.
        """
        self.settle(module)
        if self.used == 0:
            trainer = module.trainer
            raise InputError(
                f"epoch {trainer.current_epoch}: all of its {trainer.num_training_batches} batches were left out "
                f"(training.skip_nonfinite={self.most_skips}), so that nothing was trained: see "
                f"{record_folder(trainer)}. Look at these cases, or lower optimizer.lr"
            )

    def _late(self, device: torch.device) -> bool:
        if self.most_skips is not None:
            return False  # a batch to leave out must be known before its gradients mix with others and weights move
        return device.type == "cuda" if self.reads_late is None else self.reads_late

    def _read_later(
        self,
        module: pl.LightningModule,
        batches: list[Mapping[str, Any]],
        losses: list[Tensor],
        norm: Tensor | None,
        gradients: list[Tensor],
    ) -> Tensor | None:
        """Let the device zero gradients that are not finite, and judge the step before this one; return their norm."""
        spoilt = (torch.stack(losses) * 0).sum()  # NaN if one of them is NaN or infinite, else 0; so is a sum of these
        spoilt = torch.as_tensor(module.trainer.strategy.reduce(spoilt, reduce_op="sum"))
        size = spoilt if norm is None else norm
        values = OnHost(torch.stack([*losses, spoilt, size]))
        self._unread.append(_Step(Place.now(module.trainer), batches, values))
        while len(self._unread) > 1:
            self._judge_late(module, self._unread.pop(0))
        if norm is None:
            return None
        fine = spoilt + norm * 0 == 0
        zero_unless(gradients, fine)
        return torch.where(fine, norm, 0.0)

    def _judge_late(self, module: pl.LightningModule, step: _Step) -> None:
        *losses, spoilt, norm = step.values.read()
        if math.isnan(spoilt):
            own = {index: loss for index, loss in enumerate(losses) if not math.isfinite(loss)}
            batches = [step.batches[index] for index in own]
            self._judge(module, "loss", next(iter(own.values()), None), batches, step.place)
        elif not math.isfinite(norm):
            self._judge(module, "gradient norm", norm, step.batches, step.place)

    def _judge(
        self,
        module: pl.LightningModule,
        what: str,
        value: float | None,
        batches: Sequence[Mapping[str, Any]],
        place: Place | None = None,
    ) -> None:
        """Record this process's batches, then stop the run or count a skip; no batches: another process's was bad."""
        trainer = module.trainer
        place = place or Place.now(trainer)
        if batches:
            path = write_record(module, what, value, batches, place)
            cases = ", ".join(dict.fromkeys(case for batch in batches for case in batch["case"]))
            message = f"{what} is {value} at {place}, cases {cases}: statistics of the batch in {path}"
        else:
            message = f"{what} is not finite at {place} in another process: see {record_folder(trainer)}"
        self.skips += 1
        if self.most_skips is not None and self.skips <= self.most_skips:
            say(f"{message}; left out ({self.skips} in a row, at most {self.most_skips})")
            return
        if self.most_skips is None:
            advice = (
                "Go on without such batches: training.skip_nonfinite=10 with "
                f"resume={trainer.default_root_dir}, where there is a checkpoint"
            )
        else:
            advice = f"training.skip_nonfinite={self.most_skips} batches were left out before it, one after another"
        raise InputError(
            f"{message}. A finite {what} is expected: look at these cases, or lower optimizer.lr. {advice}"
        )


@dataclass(frozen=True)
class _Step:
    """A step that is not judged yet: its losses, NaN if a process has a bad one (else 0), and the gradients' norm."""

    place: Place
    batches: list[Mapping[str, Any]]
    values: OnHost


def _state(gradients: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return what changes if a gradient is replaced or written to."""
    return [(id(gradient), gradient._version) for gradient in gradients]


def without_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return a scalar with the value of `loss` and zero gradient for every parameter.

    Its backward pass changes no gradient, and data-parallel training finds a gradient for every parameter.
    """
    zeros = [(parameter * 0.0).sum() for parameter in parameters if parameter.requires_grad]
    return loss.detach() + torch.stack(zeros).sum()


def scale_gradients(gradients: list[Tensor], factor: float) -> None:
    """Multiply gradients by `factor`; a factor of 1 keeps them bit for bit."""
    if factor != 1 and gradients:
        torch._foreach_mul_(gradients, factor)


def zero_unless(gradients: Sequence[Tensor], keep: Tensor) -> None:
    """Zero gradients, NaN included, unless the scalar `keep` on their device is true; the host does not read it."""
    for size, integer in INTEGERS.items():  # bits times 1 or 0
        bits = [gradient.view(integer) for gradient in gradients if gradient.element_size() == size]
        if bits:
            torch._foreach_mul_(bits, keep.to(integer))
