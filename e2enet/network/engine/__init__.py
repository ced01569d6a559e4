"""The engine: it runs only the active kernels of an E2ENet, in inference and in training."""

from e2enet.network.engine.select import compact, select_engine, select_training, select_validation

__all__ = ["compact", "select_engine", "select_training", "select_validation"]
