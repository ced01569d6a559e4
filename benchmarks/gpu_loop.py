"""A training loop as on a GPU: DSFF, a gradient scaler that skips steps, and checkpoints, without Lightning.

It runs the fused network. Images are smooth noise whose brightness is the label, so the loss falls.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_networks import precision
from benchmarks.gpu_options import DENSITY, Work
from e2enet.common.files import atomic_path
from e2enet.network import DSFF, E2ENet
from e2enet.network.fused.network import FusedNetwork

CLIP = 12.0  # nnU-Net's
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.99, nesterov=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, 1e-3, fused=True),
}
GROWTH = {"SGD": "random", "AdamW, fused": "gradient"}


class Loop:
    """A training of the work's network from its first step, or from a checkpoint.

    Args:
        work: sizes and device; steps run in float16.
        optimizer: a name of OPTIMIZERS.
        steps: of the whole training, skipped ones included.
        overflows: steps in which a gradient is made infinite.
        checkpoint: a file of `save`.
    """

    def __init__(
        self,
        work: Work,
        optimizer: str,
        *,
        steps: int,
        overflows: Collection[int] = (),
        checkpoint: Path | None = None,
    ) -> None:
        torch.manual_seed(0)
        sizes = work.sizes.network
        self.work, self.overflows = work, overflows
        self.network = E2ENet(1, sizes.num_classes, sizes.strides, base_features=sizes.base_features)
        self.network.to(work.device).train()
        self.run = FusedNetwork(self.network)
        self.optimizer = OPTIMIZERS[optimizer](self.network.parameters())
        self.scaler = torch.amp.GradScaler(work.device.type, init_scale=2.0**10, growth_interval=50)
        self.masks = DSFF(DENSITY, update_every=max(2, steps // 10), growth=GROWTH[optimizer])
        self.done = 0  # steps, skipped ones included
        if checkpoint is not None:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)  # each part moves its own
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.done = state["done"]
        self.masks.attach(self.network, self.optimizer, total_steps=steps)

    def step(self) -> tuple[float, bool]:
        """Run the next step; return its loss and whether the scaler skipped it."""
        x, label = make_batch(self.work, seed=self.done)
        with precision(self.work.device, "float16"):
            loss = loss_of(self.run(x), label)
        self.scaler.scale(loss).backward()
        if self.done in self.overflows:
            head: Any = self.network.heads[0]
            head.weight.grad.flatten()[0] = torch.inf
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.done += 1
        return loss.item(), self.scaler.get_scale() < before

    def save(self, file: Path) -> None:
        """Write a checkpoint, completely or not at all."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        with atomic_path(file) as temporary:
            torch.save({**state, "done": self.done}, temporary)

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler, "masks": self.masks}


def make_batch(work: Work, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (B, 1, D, H, W) of smooth noise and labels (B, D, H, W), classes by brightness."""
    batch, *size = work.sizes.train
    coarse = torch.randn(batch, 1, *(-(-edge // 4) for edge in size), generator=torch.Generator().manual_seed(seed))
    x = F.interpolate(coarse, size=size, mode="trilinear")
    classes = work.sizes.network.num_classes
    label = torch.bucketize(x[:, 0], torch.linspace(-0.8, 0.8, classes - 1))
    return x.to(work.device), label.to(work.device)


def loss_of(heads: list[Tensor], label: Tensor) -> Tensor:
    """Return the cross-entropy of all heads, each half as important as the one above.

    It takes shares of classes as targets: with numbers of classes it is not deterministic on a GPU.
    """
    total, weights = torch.zeros((), device=label.device), 0.0
    for index, logits in enumerate(heads):
        steps = [fine // coarse for fine, coarse in zip(label.shape[1:], logits.shape[2:], strict=True)]
        own = label[:, :: steps[0], :: steps[1], :: steps[2]]
        target = F.one_hot(own, logits.shape[1]).movedim(-1, 1).float()
        total = total + 0.5**index * F.cross_entropy(logits.float(), target)
        weights += 0.5**index
    return total / weights
