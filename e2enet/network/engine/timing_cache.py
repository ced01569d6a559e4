"""Which way a layer runs fastest on this machine: measured once, remembered in a small file."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numba
import torch

from e2enet.common.files import write_json
from e2enet.network.engine.vector_code import processor
from e2enet.system.memory import give_back_freed_memory

RUNS, SECONDS = 3, 0.05  # timed at least, after one run that is not; the median counts, as threads wait at times


def cache_file() -> Path:
    """Where choices are remembered: engine.json in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e2enet" / "engine.json"


def machine() -> str:
    """What times depend on beside the layer: processor, threads and versions."""
    versions = f"torch {torch.__version__}, numba {numba.__version__}"
    return f"{processor()[0]}, {torch.get_num_threads()} threads, {versions}"


class TimingCache:
    """Fastest ways by a layer's description; {machine: {description: {way: seconds}}} in the file."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_file()

    def fastest(
        self, description: str, ways: Mapping[str, Callable[[], Callable[[], Any]]], seconds: float = SECONDS
    ) -> str:
        """The name of the fastest of `ways`; each gives a function that runs the layer once, when it is to be measured.

        It is then run for `seconds` at least. What a way holds is let go before the next one is made, and no way is
        made that is known already.
        """
        known = self._read().get(machine(), {}).get(description, {})
        missing = {name: _seconds(make(), seconds) for name, make in ways.items() if name not in known}
        if missing:
            self._write(description, missing)
            give_back_freed_memory()  # trials take memory of other sizes than the volumes that follow
        known |= missing
        return min(ways, key=lambda name: known[name])

    def _read(self) -> dict[str, dict[str, dict[str, float]]]:
        try:
            content = json.loads(self.path.read_text())
            return {
                str(where): {
                    str(layer): {str(way): float(seconds) for way, seconds in ways.items()}
                    for layer, ways in layers.items()
                }
                for where, layers in content.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):  # not there, or not what this wrote: measured anew
            return {}

    def _write(self, description: str, seconds: dict[str, float]) -> None:
        content = self._read()
        content.setdefault(machine(), {}).setdefault(description, {}).update(seconds)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)
        except OSError:  # a home without room or right to write: measured again next time
            pass


def _seconds(way: Callable[[], Any], at_least: float) -> float:
    way()
    times: list[float] = []
    end = time.perf_counter() + at_least
    while len(times) < RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
