"""The Lightning module: one network with its loss, optimizer, schedule, and validation of patches and cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from e2enet.common.console import say
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.outputs import segment_logits, segment_plane
from e2enet.inference.sliding_window import NotFiniteError, predict_planes
from e2enet.network.build import build_network
from e2enet.network.dsff import set_group_size
from e2enet.network.engine import select_training, select_validation
from e2enet.network.recompute import checkpoint_activations
from e2enet.training.dice import DiceCounts
from e2enet.training.losses import build_loss, sum_over_processes
from e2enet.training.nonfinite import LEFT_OUT, NonFiniteGuard, scale_gradients, without_gradient
from e2enet.training.schedules import schedule_after
from e2enet.training.step_parts import build_schedule

# The two validation loaders of the data module, by Lightning's `dataloader_idx`, and the name of their scores. Dice of
# patches and of whole cases are on different scales (a patch on foreground holds less background to be wrong in),
# so that they are never mixed or compared.
PATCHES, WHOLE_CASES = 0, 1
SCORES = {PATCHES: "val/dice", WHOLE_CASES: "val_full/dice"}


class SegmentationModule(pl.LightningModule):
    """A segmentation network in training.

    Validation loader 0 gives batches of patches, which are scored as `val/dice`; loader 1, where there is
    one, whole cases one by one, which are scored as `val_full/dice`. Either may be empty in an epoch.
    `scores` holds what this epoch's validation has measured, by these names.

    The constructor takes plain containers only, so that a checkpoint's `hyper_parameters` hold them exactly
    and open with `weights_only=True`.

    `needs_dense_gradients`, which the DSFF callback sets, asks for the gradients of inactive kernels too: such steps
    run as torch runs them, whatever `training.engine` says.

    Args:
        network: the `network` config group, for `build_network`.
        plan: `Plan.to_dict()`; its strides shape the network, its patch size the validation windows.
        dataset: {"name", "labels": {int: str}, "channels", "mirror_axes", "file_ending", "layout"}, what else its
            labels are (`LabelScheme.to_plain`), and what scoring of its label files needs: {"label_map": {int: int},
            "regions": {str: [int]}}.
        training: the `training` config group: `loss`, `optimizer`, `schedule` (each with `_target_`),
            `engine`, `checkpoint_activations`, `compile`, `skip_nonfinite`.
        group_size: output channels that share their inputs in the masks of fusion layers; 1 for single kernels.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        plan: Mapping[str, Any],
        dataset: Mapping[str, Any],
        training: Mapping[str, Any],
        group_size: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.training_config = dict(training)
        self.plan = Plan.from_dict(plan)
        self.scheme = LabelScheme.from_plain(dataset)
        self.network = build_network(
            network,
            in_channels=len(dataset["channels"]),
            num_classes=self.scheme.num_outputs,
            strides=self.plan.strides,
            patch_size=self.plan.patch_size,
        )
        set_group_size(self.network, group_size)
        if training.get("checkpoint_activations", False):
            checkpoint_activations(self.network)
        self.loss = build_loss(training["loss"], self.scheme)
        self.guard = NonFiniteGuard(training.get("skip_nonfinite"))
        self.scores: dict[str, float] = {}
        self.needs_dense_gradients = False
        self.patch_counts, self.case_counts = (
            DiceCounts(
                len(self.scheme.class_names), ignore=self.scheme.ignore, regions=list(self.scheme.regions.values())
            )
            for _ in range(2)
        )

    def setup(self, stage: str) -> None:
        """Compile the network in place where asked: parameter names and checkpoints stay the same.

        It is compiled for the batches of training alone; validation, whose windows have other sizes, takes it as it is.
        """
        if self.training_config.get("compile", False):
            self.network.compile()

    def forward(self, image: Tensor) -> Any:
        """Logits of an image batch (B, C, D, H, W): of every head in training mode, else of the first."""
        return self.network(image)

    def training_pass(self, network: nn.Module) -> Callable[[Tensor], Any]:
        """What runs the network, or a copy of it, in training steps: see `select_training`."""
        return select_training(network, self._engine, amp_dtype=_amp_dtype(network))

    @cached_property  # chosen in the first step; not a submodule, whatever runs it
    def _own_pass(self) -> Callable[[Tensor], Any]:
        return self.training_pass(self.network)

    @cached_property  # of the weights of one validation
    def _validated(self) -> nn.Module:
        return select_validation(self.network, self._engine, amp_dtype=_amp_dtype(self.network))

    @property
    def _engine(self) -> str:
        return str(self.training_config.get("engine", "dense"))

    def training_step(self, batch: Mapping[str, Any], batch_index: int) -> Tensor | dict[str, Any]:
        """Loss of one batch of patches; of one that is left out its value without a gradient, marked as such."""
        output = (self.network if self.needs_dense_gradients else self._own_pass)(batch["image"])
        heads = [output] if isinstance(output, Tensor) else output
        loss: Tensor = self.loss(heads, batch["label"])
        if not self.guard.check_loss(self, loss, batch):
            return {"loss": without_gradient(loss, self.parameters()), LEFT_OUT: True}
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step that the mean loss of its batches asks for, unless all of them were left out or their gradients
        are not finite."""
        assert optimizer_closure is not None
        first = [optimizer_closure()]  # goes forward and backward
        if batches := self.guard.batches_to_step(self):
            # Lightning has divided each loss by `accumulate`; an epoch's last step may have fewer batches, and others
            # may have been left out.
            scale_gradients(self.parameters(), self.trainer.accumulate_grad_batches / batches)
            # Optimizers that ask more than once (LBFGS) evaluate anew.
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: first.pop() if first else optimizer_closure())

    def on_validation_start(self) -> None:
        """Forget what ran the network in an earlier validation, with other weights."""
        self.__dict__.pop("_validated", None)

    @torch.compiler.set_stance("force_eager")
    def validation_step(
        self, batch: Mapping[str, Any], batch_index: int, dataloader_idx: int = PATCHES
    ) -> dict[str, Tensor]:
        """Segment a batch of patches or one whole prepared case, without mirroring, and count its voxels."""
        image, label = batch["image"], batch["label"]
        if dataloader_idx == PATCHES:
            segmentation = segment_logits(self._validated(image), self.scheme.order)
            self.patch_counts.update(segmentation, label)
        else:
            segmentation = self._segment_case(image, ", ".join(batch["case"]))
            self.case_counts.update(segmentation, label)
        return {"segmentation": segmentation}

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class over all voxels, and the mean of the classes, of what was validated in this epoch."""
        self.__dict__.pop("_validated", None)
        self.scores = {}
        for score, counts in ((SCORES[PATCHES], self.patch_counts), (SCORES[WHOLE_CASES], self.case_counts)):
            if not self._any_process(counts.update_called):
                continue
            dice, mean = counts.compute_and_reset()
            for label, name in self.scheme.class_names.items():
                if label != 0:
                    self.log(f"{score}_{name}", dice[label])
            self.log(score, mean, prog_bar=True)
            self.scores[score] = float(mean)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule of `training`."""
        optimizer = instantiate(self.training_config["optimizer"], params=self.parameters())
        section = self.training_config["schedule"]
        scheduler, interval = build_schedule(section, optimizer, self._length)
        # Lightning warns where an epoch has not measured what is monitored, and leaves the learning rate as it is.
        told: Any = {"monitor": section["monitor"], "strict": False} if section.get("monitor") else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, **told}}

    def on_train_start(self) -> None:
        """Let the learning rate of a run that goes on be that of its step and of the length that it has now."""
        done = self.trainer.fit_loop.epoch_loop.scheduler_progress.total.completed

        def make(optimizer: Optimizer) -> Any:
            return build_schedule(self.training_config["schedule"], optimizer, self._length)[0]

        if self.training_config["schedule"].get("monitor"):
            return  # it follows from scores, which the checkpoint's state knows

        for config in self.trainer.lr_scheduler_configs if done else ():
            config.scheduler = schedule_after(make, self.trainer.optimizers[0], done)

    def _any_process(self, holds: bool) -> bool:
        """Whether something holds on any of the processes, each of which asks: a case may be another one's to score,
        and its counts are added up by all or by none."""
        return bool(sum_over_processes(torch.tensor(float(holds), device=self.device)))

    def _segment_case(self, image: Tensor, name: str) -> Tensor:
        """Classes (1, D, H, W) of a whole image (1, C, D, H, W), by sliding window in the run's own precision.

        Where the network's output is not finite all is background, which is told: one bad case stops no training.
        """
        planes = predict_planes(
            [self._validated],
            image[0],
            self.plan.patch_size,
            mirror_axes=(),
            device=self.device,
            amp_dtype=_amp_dtype(self.network),
            sigmoid=bool(self.scheme.regions),
        )
        try:
            segmented = [segment_plane(plane, self.scheme.order) for plane in planes]
            return torch.stack(segmented)[None].to(image.device)
        except NotFiniteError as error:
            say(f"warning: validation case {name}: {error}; it counts as empty")
            return torch.zeros_like(image[:, 0], dtype=torch.uint8)

    def _length(self, interval: str) -> int:
        if interval == "step":
            return int(self.trainer.estimated_stepping_batches)
        return max(1, self.trainer.max_epochs or 1)


def _amp_dtype(network: nn.Module) -> torch.dtype | None:
    """The dtype of the autocast that is on for a network's device, None where there is none."""
    kind = next(network.parameters()).device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
