"""E2ENet, its sparse fusion layers, their cost, and the authors' released weights."""

from e2enet.network.build import build_network
from e2enet.network.dsff_training import DSFF
from e2enet.network.e2enet import E2ENet

__all__ = ["DSFF", "E2ENet", "build_network"]
