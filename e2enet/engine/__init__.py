"""Inference that multiplies active kernels only: a trained E2ENet as a program of compiled layers for a CPU."""

from e2enet.engine.select import ENGINES, select_engine

__all__ = ["ENGINES", "select_engine"]
