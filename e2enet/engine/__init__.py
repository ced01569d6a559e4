"""Inference and training that multiply active kernels only: an E2ENet as a program of compiled layers for a CPU."""

from e2enet.engine.select import ENGINES, select_engine, select_training, select_validation

__all__ = ["ENGINES", "select_engine", "select_training", "select_validation"]
