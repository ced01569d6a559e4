"""Find the way in which a layer or network runs fastest on this machine: measured once, remembered in a file."""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from e2enet.common.errors import first_line
from e2enet.common.files import write_json
from e2enet.network.engine.vector_code import processor
from e2enet.network.loop_cache import loops_key
from e2enet.system.memory import empty_caches, give_back_freed_memory

logger = logging.getLogger(__name__)

RUNS, SECONDS = 3, 0.05  # least timed, after one untimed run; the median counts, as threads sometimes wait


def cache_file() -> Path:
    """Return the file of remembered times: engine.json in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e2enet" / "engine.json"


def machine() -> str:
    """Return what times depend on besides the layer: processor, threads, torch and the engine's code."""
    code = f"torch {torch.__version__}, loops {loops_key()}"
    return f"{processor()[0]}, {torch.get_num_threads()} threads, {code}"


class TimingCache:
    """Times of the ways to run a layer; {machine: {description: {way: seconds}}} in the file."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_file()

    def fastest(
        self, description: str, ways: Mapping[str, Callable[[], Callable[[], Any]]], seconds: float = SECONDS
    ) -> str:
        """Return the name of the fastest of `ways`. Each builds its layer and returns a function that runs it once.

        A way is called only if its time is not remembered; its function then runs for `seconds` at least. The memory of
        a way is released before the next one is called. A way that fails, for want of memory say, is left out with a
        line in the log, and tried again next time. If all fail, the first one's error is raised.
        """
        known = self._read().get(machine(), {}).get(description, {})
        measured: dict[str, float] = {}
        failed: list[Exception] = []
        for name, make in ways.items():
            if name in known:
                continue
            try:
                measured[name] = _seconds(make(), seconds)
            except Exception as error:  # whatever a compiler or a driver raises
                failed.append(error.with_traceback(None))  # whose frames keep memory
                logger.warning(f"{name} is left out for a {description}: {type(error).__name__}: {first_line(error)}")
                empty_caches()
        if measured:
            self._write(description, measured)
            give_back_freed_memory()  # trials use other memory sizes than the volumes that follow
        known |= measured
        left = [name for name in ways if name in known]
        if not left:
            raise failed[0]
        return min(left, key=lambda name: known[name])

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
        except (OSError, ValueError, AttributeError, TypeError):  # missing, or not written by this: measured again
            return {}

    def _write(self, description: str, seconds: dict[str, float]) -> None:
        content = self._read()
        content.setdefault(machine(), {}).setdefault(description, {}).update(seconds)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)
        except OSError:  # home is full or read-only: measured again next time
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
