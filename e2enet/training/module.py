"""The Lightning module: one network with its loss, optimizer, schedule and whole-case validation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from hydra.utils import get_method, instantiate
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from e2enet.data.planning.plan import Plan
from e2enet.inference.sliding_window import predict_probabilities
from e2enet.network.build import build_network
from e2enet.training.losses import DeepSupervisionLoss


class SegmentationModule(pl.LightningModule):
    """A segmentation network in training.

    The constructor takes plain containers only, so that a checkpoint's `hyper_parameters` hold them exactly
    and open with `weights_only=True`.

    Args:
        network: the `network` config group, for `build_network`.
        plan: `Plan.to_dict()`; its strides shape the network, its patch size the validation windows.
        dataset: {"name", "labels": {int: str}, "channels", "mirror_axes", "file_ending"}.
        training: the `training` config group: `loss`, `optimizer`, `schedule` (each with `_target_`),
            `compile`.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        plan: Mapping[str, Any],
        dataset: Mapping[str, Any],
        training: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.training_config = dict(training)
        self.plan = Plan.from_dict(plan)
        self.labels = {int(label): str(name) for label, name in dataset["labels"].items()}
        self.network = build_network(
            network,
            in_channels=len(dataset["channels"]),
            num_classes=len(self.labels),
            strides=self.plan.strides,
        )
        self.loss = DeepSupervisionLoss(instantiate(training["loss"]))
        self.confusion = MulticlassConfusionMatrix(num_classes=len(self.labels), validate_args=False)

    def setup(self, stage: str) -> None:
        """Compile the network in place where asked: parameter names and checkpoints stay the same."""
        if self.training_config.get("compile", False):
            self.network.compile()

    def forward(self, image: Tensor) -> Any:
        """Logits of an image batch (B, C, D, H, W): of every head in training mode, else of the first."""
        return self.network(image)

    def training_step(self, batch: Mapping[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch of patches."""
        output = self(batch["image"])
        heads = [output] if isinstance(output, Tensor) else output
        loss: Tensor = self.loss(heads, batch["label"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_train_epoch_start(self) -> None:
        """Log the learning rate that this epoch starts with."""
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)

    def validation_step(self, batch: Mapping[str, Any], batch_index: int) -> dict[str, Tensor]:
        """Segment one whole prepared case, without mirroring; count its voxels by (true, predicted) class."""
        probabilities = predict_probabilities(
            [self.network],
            batch["image"][0],
            self.plan.patch_size,
            mirror_axes=(),
            device=self.device,
        )
        segmentation = probabilities.argmax(dim=0).to(batch["label"].device)
        self.confusion.update(segmentation[None], batch["label"])
        return {"segmentation": segmentation}

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class over all validation voxels, and the mean of the classes."""
        dice = dice_per_class(self.confusion.compute())
        self.confusion.reset()
        for label, name in self.labels.items():
            if label != 0:
                self.log(f"val/dice_{name}", dice[label])
        self.log("val/dice", dice[1:].nanmean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule from `training.optimizer` and `training.schedule`."""
        optimizer = instantiate(self.training_config["optimizer"], params=self.parameters())
        config = dict(self.training_config["schedule"])
        interval = config.pop("interval", "epoch")
        supplied: dict[str, Any] = {"optimizer": optimizer}
        if "total" in inspect.signature(get_method(config["_target_"])).parameters:
            supplied["total"] = self._length(interval)
        scheduler = instantiate(config, **supplied)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _length(self, interval: str) -> int:
        if interval == "step":
            return int(self.trainer.estimated_stepping_batches)
        return max(1, self.trainer.max_epochs or 1)


def dice_per_class(confusion: Tensor) -> Tensor:
    """Dice (K,) from a confusion matrix (K, K) of voxel counts; NaN for a class that is nowhere."""
    counts = confusion.double()
    return (2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))).float()
