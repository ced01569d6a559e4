"""The Lightning module: a network with its loss, optimizer, schedule and validation of patches and cases."""

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
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from e2enet.common.console import say
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.outputs import segment_logits, segment_plane
from e2enet.inference.sliding_window import NotFiniteError, predict_planes
from e2enet.network.build import build_network
from e2enet.network.dsff import set_group_size
from e2enet.network.engine import select_training, select_validation
from e2enet.network.engine.select import FUSED_WAYS
from e2enet.network.recompute import checkpoint_activations
from e2enet.training.dice import DiceCounts
from e2enet.training.losses import build_loss, sum_over_processes
from e2enet.training.nonfinite import LEFT_OUT, NonFiniteGuard, without_gradient
from e2enet.training.schedules import schedule_after
from e2enet.training.step_parts import build_schedule

# `dataloader_idx` of the data module's two validation loaders, and the names of their scores. Dice of patches and of
# whole cases have different scales (a patch on foreground has less background for false positives), so they are never
# mixed or compared.
PATCHES, WHOLE_CASES = 0, 1
SCORES = {PATCHES: "val/dice", WHOLE_CASES: "val_full/dice"}


class SegmentationModule(pl.LightningModule):
    """A segmentation network in training.

    Validation loader 0 gives batches of patches, scored as `val/dice`. Loader 1, if there is one, gives whole cases one
    by one, scored as `val_full/dice`. Either may be empty in an epoch. `scores` holds the scores of this epoch's
    validation by these names.

    The constructor takes plain containers only. A checkpoint's `hyper_parameters` thus hold them exactly and load with
    `weights_only=True`.

    The DSFF callback sets `final_density`, so that the engine does not depend on where a run is resumed. It sets
    `needs_dense_gradients` for steps that need the gradients of inactive kernels too. Such steps run in torch or fused,
    whatever `training.engine` is.

    Args:
        network: the `network` config group, for `build_network`.
        plan: `Plan.to_dict()`; its strides shape the network, its patch size the validation windows.
        dataset: {"name", "labels": {int: str}, "channels", "mirror_axes", "file_ending", "layout"}, the other entries
            of `LabelScheme.to_plain`, and for the scoring of label files {"label_map": {int: int},
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
        self.final_density: float | None = None  # of masks whose density falls during the run
        self.way: str | None = None  # how `training.engine=auto` takes steps on a GPU (`engine_choice`)
        self.patch_counts, self.case_counts = (
            DiceCounts(
                len(self.scheme.class_names), ignore=self.scheme.ignore, regions=list(self.scheme.regions.values())
            )
            for _ in range(2)
        )

    def setup(self, stage: str) -> None:
        """Compile the network in place if the config asks for it: parameter names and checkpoints stay the same.

        Only training batches use the compiled network. Validation runs it uncompiled, since its windows have other
        sizes. All processes take steps in the way that the first one has chosen.
        """
        self.way = self.trainer.strategy.broadcast(self.way)
        if self.training_config.get("compile", False):
            self.network.compile()

    def forward(self, image: Tensor) -> Any:
        """Return the logits of an image batch (B, C, D, H, W): of every head in training mode, else of the first."""
        return self.network(image)

    def training_pass(self, network: nn.Module) -> Callable[[Tensor], Any]:
        """Return the function that runs the network, or a copy of it, in training steps: see `select_training`."""
        return select_training(network, self._engine, amp_dtype=amp_dtype_of(network), share=self.final_density)

    @cached_property  # selected in the first step; never registered as a submodule
    def _own_pass(self) -> Callable[[Tensor], Any]:
        return self.training_pass(self.network)

    def dense_pass(self, network: nn.Module) -> Callable[[Tensor], Any]:
        """Return what also finds the gradients of inactive kernels of the network, or of a copy of it.

        It is fused if steps are, which torch may have no memory for.
        """
        by_groups = self._engine == "sparse" and next(network.parameters()).device.type != "cpu"
        if not by_groups and self._engine not in FUSED_WAYS:
            return network
        return select_training(network, "fused", amp_dtype=amp_dtype_of(network))

    @cached_property
    def _own_dense_pass(self) -> Callable[[Tensor], Any]:
        return self.dense_pass(self.network)

    @cached_property  # for the weights of one validation
    def _validated(self) -> nn.Module:
        amp_dtype = amp_dtype_of(self.network)
        return select_validation(self.network, self._engine, amp_dtype=amp_dtype, share=self.final_density)

    @property
    def _engine(self) -> str:
        engine = str(self.training_config.get("engine", "dense"))
        return self.way if engine == "auto" and self.way is not None else engine

    def training_step(self, batch: Mapping[str, Any], batch_index: int) -> Tensor | dict[str, Any]:
        """Return the loss of a batch of patches; for a batch left out, a marked loss without gradient."""
        output = (self._own_dense_pass if self.needs_dense_gradients else self._own_pass)(batch["image"])
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
        """Take an optimizer step on the mean loss of its batches.

        Take none if all batches were left out or their gradients are not finite.
        """
        assert optimizer_closure is not None
        first = [optimizer_closure()]  # forward and backward
        if self.guard.may_step(self):
            # Optimizers that call the closure more than once (LBFGS) evaluate it again.
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: first.pop() if first else optimizer_closure())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as Lightning does, by the norm that the guard has checked."""
        norm = self.guard.take_norm(self)
        if norm is None or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep no weights of a step whose loss or gradient was not finite."""
        self.guard.settle(self)

    def on_train_end(self) -> None:
        """Judge the last step of a run that ends within an epoch."""
        self.guard.settle(self)

    def on_validation_start(self) -> None:
        """Drop the cached network of an earlier validation, which had other weights."""
        self.guard.settle(self)
        self.__dict__.pop("_validated", None)

    @torch.compiler.set_stance("force_eager")
    def validation_step(
        self, batch: Mapping[str, Any], batch_index: int, dataloader_idx: int = PATCHES
    ) -> dict[str, Tensor]:
        """Segment a batch of patches or one whole prepared case without mirroring, and count its voxels."""
        image, label = batch["image"], batch["label"]
        if dataloader_idx == PATCHES:
            segmentation = segment_logits(self._validated(image), self.scheme.order)
            self.patch_counts.update(segmentation, label)
        else:
            segmentation = self._segment_case(image, ", ".join(batch["case"]))
            self.case_counts.update(segmentation, label)
        return {"segmentation": segmentation}

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class over all voxels validated in this epoch, and the mean over the classes."""
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
        # Not strict: if an epoch lacks the monitored score, Lightning warns and keeps the learning rate.
        told: Any = {"monitor": section["monitor"], "strict": False} if section.get("monitor") else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, **told}}

    def on_train_start(self) -> None:
        """Set a resumed run's learning rate for its step and its present length."""
        done = self.trainer.fit_loop.epoch_loop.scheduler_progress.total.completed

        def make(optimizer: Optimizer) -> Any:
            return build_schedule(self.training_config["schedule"], optimizer, self._length)[0]

        if self.training_config["schedule"].get("monitor"):
            return  # it follows from scores; the checkpoint has the schedule's state

        for config in self.trainer.lr_scheduler_configs if done else ():
            config.scheduler = schedule_after(make, self.trainer.optimizers[0], done)

    def on_train_epoch_end(self) -> None:
        """Give the score of a resumed epoch to a schedule that follows it: Lightning leaves this epoch out."""
        loop = self.trainer.fit_loop
        if loop.restarting and self.training_config["schedule"].get("monitor"):
            loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)

    def _any_process(self, holds: bool) -> bool:
        """Whether `holds` is true on any process; every process must call this.

        A case may be scored by another process, but its counts are summed by all processes or by none.
        """
        return bool(sum_over_processes(torch.tensor(float(holds), device=self.device)))

    def _segment_case(self, image: Tensor, name: str) -> Tensor:
        """Return classes (1, D, H, W) of a whole image (1, C, D, H, W), by sliding window in the run's precision.

        If the network's output is not finite, print a warning and return background only: one bad case does not stop
        the training.
        """
        planes = predict_planes(
            [self._validated],
            image[0],
            self.plan.patch_size,
            mirror_axes=(),
            device=self.device,
            amp_dtype=amp_dtype_of(self.network),
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


def amp_dtype_of(network: nn.Module) -> torch.dtype | None:
    """Return the dtype of the active autocast for a network's device; None without autocast."""
    kind = next(network.parameters()).device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
