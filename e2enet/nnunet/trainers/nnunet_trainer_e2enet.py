"""Shows nnU-Net the trainer, which lies elsewhere: nnU-Net imports this file by its bare name, and forgets it again."""

from e2enet.nnunet.trainer import nnUNetTrainerE2ENet

__all__ = ["nnUNetTrainerE2ENet"]
