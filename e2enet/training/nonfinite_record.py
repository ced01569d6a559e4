"""The record of a batch whose loss or gradient is not finite: where it was, and statistics of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from e2enet.common.files import write_json

FOLDER = "nonfinite"  # in the run folder: a file per batch
MAX_NAMED = 10  # non-finite weights named in a record


@dataclass(frozen=True)
class Place:
    """Where in a run a batch is, and the settings that it met."""

    epoch: int
    batch: int
    step: int
    learning_rate: float

    @classmethod
    def now(cls, trainer: pl.Trainer) -> Place:
        """Return the present place of a run."""
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        return cls(trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, trainer.global_step, learning_rate)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}"


def write_record(
    module: pl.LightningModule, what: str, value: float | None, batches: Sequence[Mapping[str, Any]], place: Place
) -> Path:
    """Write epoch, batch, settings and case statistics as JSON (NaN and Infinity in Python's spelling)."""
    trainer = module.trainer
    path = record_folder(trainer) / f"epoch_{place.epoch}_batch_{place.batch}_rank_{trainer.global_rank}.json"
    scaler = gradient_scaler(trainer)
    bad = [name for name, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())]
    write_json(
        path,
        {
            what.replace(" ", "_"): value,
            **asdict(place),
            "rank": trainer.global_rank,
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


def gradient_scaler(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """Return the gradient scaler of training in float16; None in other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def record_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a run's records."""
    return Path(trainer.default_root_dir) / FOLDER
