"""nnU-Net's trainer with DSFF: masks from the plans' settings, in the checkpoint, and resumed with it.

nnU-Net finds it through `trainers/`, the folder for the environment variable nnUNet_extTrainer.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path
from e2enet.network import DSFF
from e2enet.network.dsff import density, fusion_layers
from e2enet.network.engine import select_training
from e2enet.network.nnunet_arguments import ADAPTER
from e2enet.nnunet.random_state import get_random_state, set_random_state
from e2enet.nnunet.settings import dsff_settings, read_dsff, read_length

# In the checkpoint, beside nnU-Net's own keys.
STATE, SETTINGS, RANDOM = "dsff_state", "dsff_settings", "random_state"
# nnU-Net's predictor builds the network by the trainer that a checkpoint names. nnU-Net's own builds it from the plans,
# so that predicting needs no nnUNet_extTrainer.
BUILDS_THE_NETWORK = nnUNetTrainer.__name__


class nnUNetTrainerE2ENet(nnUNetTrainer):  # noqa: N801 - nnU-Net's trainers are all called so
    """nnU-Net's trainer for an E2ENet whose fusion layers DSFF masks.

    Everything but the masks is nnU-Net's: data, loss, optimizer, schedule, validation. The sections `dsff` and
    `training` of the configuration in the plans hold the settings (nnunet.settings). Gradients of inactive kernels are
    zero before nnU-Net clips.

    A checkpoint also holds the state of DSFF and of the random numbers, so that `--c` goes on exactly: bit for bit if
    nnU-Net augments in the training process (nnUNet_n_proc_DA=0).

    Raises:
        InputError: in `initialize`, for wrong settings, a network without fusion layers, or settings that are not those
            of the checkpoint to go on from.
    """

    dsff: DSFF | None = None
    _random_state: dict[str, Any] | None = None  # to go on from, at the start of the next epoch

    def initialize(self) -> None:
        """Build the network as nnU-Net does, and draw its masks."""
        configuration, name = self.configuration_manager.configuration, self.configuration_name
        self.dsff = read_dsff(configuration, name)
        length = read_length(configuration, name)
        self.num_epochs = length.epochs
        self.num_iterations_per_epoch = length.iterations_per_epoch
        self.num_val_iterations_per_epoch = length.validation_iterations_per_epoch
        network_class = self.configuration_manager.network_arch_class_name
        if network_class != ADAPTER:
            raise InputError(
                f"{name}.architecture.network_class_name of the plans is {network_class}: {ADAPTER} expected, as "
                "`e2enet nnunet plans` writes it"
            )
        super().initialize()
        if self.dsff is not None:
            if not fusion_layers(self.adapter):
                raise InputError(
                    f"{name}: a network without fusion layers (fusion unet) has nothing to mask; "
                    '"dsff": {"enabled": false} expected'
                )
            self.dsff.draw(self.adapter)

    @property
    def adapter(self) -> Any:
        """The network itself, without the wrappers of torch.compile and of data-parallel training."""
        network: Any = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and let DSFF hold and update the masks from now on."""
        super().on_train_start()
        if self.dsff is not None:
            steps = self.num_epochs * self.num_iterations_per_epoch
            self.dsff.attach(self.adapter, self.optimizer, total_steps=steps, epochs=self.num_epochs)
        if self.device.type == "cpu":
            share = self.dsff.density if self.dsff and self.dsff.density_initial else None
            self._active_kernels = select_training(self.adapter.network, "auto", amp_dtype=None, share=share)

    def on_epoch_start(self) -> None:
        """Go on with the random numbers of a checkpoint, which nnU-Net's loaders have drawn from since."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None
        super().on_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take nnU-Net's step. On a CPU active kernels alone are multiplied, if that pays (`select_training`)."""
        if self.device.type == "cpu":
            every = self.dsff is not None and self.dsff.wants_dense_gradients
            self.adapter.run_training_by(None if every else self._active_kernels)
        found: dict[str, Any] = super().train_step(batch)
        return found

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the state of the masks beside the loss."""
        super().on_train_epoch_end(train_outputs)
        if self.dsff is not None:
            churn = "-" if self.dsff.last_churn is None else f"{self.dsff.last_churn:.4f}"
            self.print_to_log_file(
                f"DSFF: density {density(self.adapter):.4f}, updates {self.dsff.num_updates}, churn {churn}, ever "
                f"active {self.dsff.share_ever_active():.4f}"
            )

    def on_train_end(self) -> None:
        """End as nnU-Net does, and leave weights and optimizer without hooks."""
        super().on_train_end()
        self.adapter.run_training_by(None)
        if self.dsff is not None:
            self.dsff.remove()

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with the state of DSFF and of the random numbers, whole or not at all."""
        # nnU-Net's method makes the dictionary and stores it in one go, and has no place for more keys or another
        # trainer's name. So it is written to memory and read back: one more copy of weights and moments meanwhile.
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # nnU-Net hands it to torch.save; other ranks write nothing
        if not buffer.tell():
            return
        buffer.seek(0)
        # Tensors keep their device, as in a checkpoint of nnU-Net. It holds nnU-Net's own objects (NumPy's numbers).
        content: dict[str, Any] = torch.load(buffer, weights_only=False)
        content["trainer_name"] = BUILDS_THE_NETWORK
        content[RANDOM] = get_random_state()
        if self.dsff is not None:
            content[STATE], content[SETTINGS] = self.dsff.state_dict(), self._settings()
        with atomic_path(Path(filename)) as temporary:
            torch.save(content, temporary)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore what `save_checkpoint` wrote."""
        super().load_checkpoint(filename_or_checkpoint)
        # nnU-Net's method keeps what it read to itself, and takes no dictionary, though its annotation says so (2.8.1).
        # So the file is opened again. `mmap` reads from it only what is used below, not weights and moments.
        content = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False, mmap=True)
        if self.dsff is None and STATE in content:
            raise InputError(
                f"{filename_or_checkpoint}: was trained with DSFF, {self.configuration_name}.dsff has enabled false. "
                "Expected the plans that it was trained with"
            )
        if self.dsff is not None:
            if STATE not in content:
                raise InputError(
                    f"{filename_or_checkpoint}: holds no {STATE}; a checkpoint of {type(self).__name__} expected"
                )
            now, then = self._settings(), content[SETTINGS]
            changed = [
                f"{key} is {now[key]!r}, {then.get(key)!r} in the checkpoint"
                for key in now
                if now[key] != then.get(key)
            ]
            if changed:
                raise InputError(
                    f"{filename_or_checkpoint}: was trained with other settings of {self.configuration_name}.dsff: "
                    f"{'; '.join(changed)}. Expected the plans that it was trained with"
                )
            self.dsff.load_state_dict(content[STATE])
        if not self.is_ddp:  # the state is the first process's: with it, all would draw the same patches
            self._random_state = content.get(RANDOM)

    def _settings(self) -> dict[str, Any]:
        return dsff_settings(self.configuration_manager.configuration, self.configuration_name)
