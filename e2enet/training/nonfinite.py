"""NaN or infinite losses and gradients: record the batch, then stop the run or leave the batch out.

Such a step would make every weight NaN. By default the run stops and the recorded batch can be inspected. If the batch
is left out, weights, masks and optimizer stay unchanged; only counters and schedule advance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import write_json

FOLDER = "nonfinite"  # in the run folder: a file per batch
MAX_NAMED = 10  # non-finite weights named in a record
LEFT_OUT = "left_out"  # marks the output of a training step whose batch is left out


class NonFiniteGuard:
    """Accepts batches and optimizer steps with finite losses and gradients.

    All processes decide together: a batch is one batch over all of them. With a gradient scaler only losses are
    checked, since the scaler checks gradients itself: it skips steps while it searches for its scale.

    Args:
        most_skips: Batches that may be left out in a row, without an optimizer step between them. One more stops the
            run. None stops it at the first.
    """

    def __init__(self, most_skips: int | None) -> None:
        self.most_skips = most_skips
        self.skips = 0
        self.used = 0  # batches of this epoch that were used in a step; `TrainLossLogger` resets it each epoch
        self._batches: list[Mapping[str, Any]] = []  # accumulated for the next optimizer step

    def check_loss(self, module: pl.LightningModule, loss: Tensor, batch: Mapping[str, Any]) -> bool:
        """Whether to run the backward pass for the loss of a batch.

        Raises:
            InputError: the loss is not finite and the run must stop.
        """
        loss = loss.detach()
        finite = bool(torch.isfinite(loss))
        if module.trainer.strategy.reduce_boolean_decision(finite):
            # Keep only the ids of earlier batches: their voxels would stay on the device until the step.
            self._batches = [*({"case": earlier["case"]} for earlier in self._batches), batch]
            return True
        self._judge(module, "loss", None if finite else float(loss), [] if finite else [batch])
        return False

    def batches_to_step(self, module: pl.LightningModule) -> int:
        """Return how many batches the next optimizer step accumulates; 0 if the step is left out.

        Raises:
            InputError: the gradients are not finite and the run must stop.
        """
        batches, self._batches = self._batches, []
        if not batches:
            return 0
        if _scaler(module.trainer) is None:
            norm = get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
            # The same on all processes: they have exchanged their gradients.
            if not bool(torch.isfinite(norm)):
                self._judge(module, "gradient norm", float(norm), batches)
                return 0
        self.skips = 0
        self.used += len(batches)
        return len(batches)

    def end_epoch(self, module: pl.LightningModule) -> None:
        """Check at the end of an epoch that it used at least one batch.

        Raises:
            InputError: all of its batches were left out.
        """
        if self.used == 0:
            trainer = module.trainer
            raise InputError(
                f"epoch {trainer.current_epoch}: all of its {trainer.num_training_batches} batches were left out "
                f"(training.skip_nonfinite={self.most_skips}), so that nothing was trained: see {_folder(trainer)}. "
                "Look at these cases, or lower optimizer.lr"
            )

    def _judge(
        self, module: pl.LightningModule, what: str, value: float | None, batches: Sequence[Mapping[str, Any]]
    ) -> None:
        """Record this process's batches, then stop the run or count a skip; no batches: another process's was bad."""
        trainer = module.trainer
        place = f"epoch {trainer.current_epoch}, batch {trainer.fit_loop.epoch_loop.batch_idx}"
        if batches:
            path = write_record(module, what, value, batches)
            cases = ", ".join(dict.fromkeys(case for batch in batches for case in batch["case"]))
            message = f"{what} is {value} at {place}, cases {cases}: statistics of the batch in {path}"
        else:
            message = f"{what} is not finite at {place} in another process: see {_folder(trainer)}"
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


def without_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return a scalar with the value of `loss` and zero gradient for every parameter.

    Its backward pass changes no gradient, and data-parallel training finds a gradient for every parameter.
    """
    zeros = [(parameter * 0.0).sum() for parameter in parameters if parameter.requires_grad]
    return loss.detach() + torch.stack(zeros).sum()


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients by `factor`; a factor of 1 keeps them bit for bit."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if factor != 1 and gradients:
        torch._foreach_mul_(gradients, factor)


def write_record(
    module: pl.LightningModule, what: str, value: float | None, batches: Sequence[Mapping[str, Any]]
) -> Path:
    """Write epoch, batch, settings and case statistics as JSON (NaN and Infinity in Python's spelling)."""
    trainer = module.trainer
    epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
    path = _folder(trainer) / f"epoch_{epoch}_batch_{batch}_rank_{trainer.global_rank}.json"
    scaler = _scaler(trainer)
    bad = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())]
    write_json(
        path,
        {
            what.replace(" ", "_"): value,
            "epoch": epoch,
            "batch": batch,
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "precision": trainer.precision,
            "grad_scale": None if scaler is None else scaler.get_scale(),
            # If there are any, the batch is not the cause.
            "nonfinite_weights": {"count": len(bad), "first": bad[:MAX_NAMED]},
            "cases": [case for batch in batches for case in case_statistics(batch)],
        },
    )
    return path


def case_statistics(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return statistics for each case of a batch {"image": (B, C, D, H, W), "label": (B, D, H, W), "case": ids}.

    They are the labels that occur and, per channel, the number of non-finite voxels and the minimum, maximum, mean and
    standard deviation of the finite ones (None without any). A batch without voxels, {"case": ids}, gives only the ids.
    """
    if "image" not in batch:
        return [{"case": case} for case in batch["case"]]
    samples = zip(batch["case"], batch["image"], batch["label"], strict=True)
    return [
        {"case": case, "labels": label.unique().tolist(), "channels": [*map(_channel_statistics, image)]}
        for case, image, label in samples
    ]


def _channel_statistics(channel: Tensor) -> dict[str, Any]:
    finite = channel[torch.isfinite(channel)].double()
    names = ("min", "max", "mean", "std")
    known: list[float | None] = [None] * len(names)
    if finite.numel():
        known = [float(value) for value in (finite.min(), finite.max(), finite.mean(), finite.std(correction=0))]
    return dict(zip(names, known, strict=True)) | {"nonfinite_voxels": channel.numel() - finite.numel()}


def _scaler(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER
