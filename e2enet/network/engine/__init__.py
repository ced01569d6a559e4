"""E2ENet by its active kernels alone, in inference and in training."""

from e2enet.network.engine.select import ENGINES, compact, select_engine, select_training, select_validation

__all__ = ["ENGINES", "compact", "select_engine", "select_training", "select_validation"]
