"""E2ENet as nnU-Net v2 builds, trains and runs a network; nnU-Net finds it by `network_class_name` in its plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from e2enet.common.config_rules import ENGINES
from e2enet.common.errors import InputError
from e2enet.network import E2ENet
from e2enet.network.nnunet_arguments import e2enet_arguments

Pass = Callable[[Tensor], Any]


class E2ENetAdapter(nn.Module):
    """An E2ENet with nnU-Net's arguments and nnU-Net's switch for deep supervision.

    nnU-Net sets `decoder.deep_supervision`. With it the output is a list of logits, full resolution first, in eval mode
    too. Without it the output is the full-resolution logits, in training mode too. The weights and masks lie below
    `network.`, as in the checkpoints of train.py.

    On a CPU nnU-Net's predictor gets the active kernels alone (`engine`). The logits then differ by rounding.

    Args:
        input_channels: Channels of the image.
        num_classes: Output channels.
        deep_supervision: Whether to return the logits of every head.
        engine: How the network predicts on a CPU, in torch's inference mode: "auto" (the faster one, measured at the
            first patch), "sparse" (active kernels alone) or "dense" (torch, every kernel).
        arch_kwargs: nnU-Net's `n_stages`, `features_per_stage`, `strides`, .., and E2ENet's own `shift_size`,
            `shift_input`, `inner_kernel_size` and `fusion`; see `e2enet_arguments`.

    Raises:
        InputError: lists the arguments that E2ENet cannot have.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        deep_supervision: bool = False,
        engine: str = "auto",
        **arch_kwargs: Any,
    ) -> None:
        super().__init__()
        if engine not in ENGINES:
            raise InputError(f"arch_kwargs: engine is {engine!r}: {', '.join(ENGINES)} expected")
        arguments = e2enet_arguments(arch_kwargs)
        self.network = E2ENet(input_channels, num_classes, **arguments, deep_supervision=deep_supervision)
        self.engine = engine
        self.decoder.deep_supervision = deep_supervision
        # Neither is a submodule: an engine's copies of the weights belong in no checkpoint.
        self._training_pass: Pass | None = None
        self._prediction_pass: Pass | None = None
        self.register_load_state_dict_post_hook(_forget_engine)

    @property
    def decoder(self) -> DeepSupervision:
        """What nnU-Net switches deep supervision by."""
        return DeepSupervision(self)

    def forward(self, x: Tensor) -> Any:
        return self._pass(x)(x)

    def train(self, mode: bool = True) -> E2ENetAdapter:
        """Set the mode as torch does. Weights may change in training, so the engine of predictions is made anew."""
        self.forget_engine()
        super().train(mode)
        return self

    def run_training_by(self, training_pass: Pass | None) -> None:
        """Run training steps by another function of the input than the network itself; None is the network."""
        object.__setattr__(self, "_training_pass", training_pass)

    def forget_engine(self) -> None:
        """Make the engine of predictions anew when it is next needed, for other weights or masks."""
        object.__setattr__(self, "_prediction_pass", None)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> float:
        """Return the memory of a training step for a patch (D, H, W), in the unit of nnU-Net's planner.

        The unit is a value of a convolution's output in nnU-Net's U-Net, see `memory.feature_map_size`.
        """
        from e2enet.nnunet.memory import feature_map_size

        return feature_map_size(self.network, input_size)

    def _pass(self, x: Tensor) -> Pass:
        """What runs the network now. Nothing but a predictor is in torch's inference mode."""
        if self.training:
            return self._training_pass or self.network
        if self.engine == "dense" or x.device.type != "cpu" or not torch.is_inference_mode_enabled():
            return self.network
        if self._prediction_pass is None:
            from e2enet.network.engine import select_engine  # brings numba, which only this needs

            patch_size = tuple(x.shape[2:])
            chosen = select_engine(self.network, self.engine, device=x.device, patch_size=patch_size)
            object.__setattr__(self, "_prediction_pass", chosen)
        assert self._prediction_pass is not None
        return self._prediction_pass


class DeepSupervision:
    """The switch of an E2ENet's deep supervision, as nnU-Net knows it: in training and eval mode alike."""

    def __init__(self, adapter: E2ENetAdapter) -> None:
        self._adapter = adapter

    @property
    def deep_supervision(self) -> bool:
        """Whether the logits of every head are returned."""
        return self._adapter.network.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        network = self._adapter.network
        network.deep_supervision = network.deep_supervision_in_eval = enabled
        self._adapter.forget_engine()  # which returns what the network returned when it was made


def _forget_engine(adapter: Any, _: Any) -> None:
    adapter.forget_engine()
