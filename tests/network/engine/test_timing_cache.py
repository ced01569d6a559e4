"""Times of the ways to run a layer: measured once, remembered by machine and code, and lost without harm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.network.engine import timing_cache
from e2enet.network.engine.timing_cache import TimingCache


def test_only_ways_that_are_not_known_yet_are_measured(tmp_path: Path) -> None:
    made: list[str] = []

    def maker(name: str, seconds: float) -> Any:
        def make() -> Any:
            made.append(name)
            return lambda: time.sleep(seconds)

        return make

    some = {"slow": maker("slow", 0.02), "fast": maker("fast", 0.001)}
    more = {**some, "faster": maker("faster", 0.0)}
    choices = TimingCache(tmp_path / "engine.json")
    assert [choices.fastest("layer", ways) for ways in (some, more, some, more)] == ["fast", "faster", "fast", "faster"]
    assert made == ["slow", "fast", "faster"]


def test_times_of_other_code_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that check their bounds are many times slower, and so may be those of an earlier version."""
    choices, made = TimingCache(tmp_path / "engine.json"), list[str]()
    ways = {name: lambda name=name: made.append(name) or (lambda: None) for name in ("sparse", "dense")}
    for key in ("0123-checked", "0123", "4567", "0123"):
        monkeypatch.setattr(timing_cache, "loops_key", lambda key=key: key)
        choices.fastest("layer", ways)
    assert made == 3 * ["sparse", "dense"]


def test_a_way_that_fails_is_left_out_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def without_memory() -> Any:
        raise MemoryError("4 GiB are too much")

    choices = TimingCache(tmp_path / "engine.json")
    assert choices.fastest("layer", {"torch": lambda: without_memory, "sparse": lambda: lambda: None}) == "sparse"
    assert "torch is left out for a layer: MemoryError: 4 GiB are too much" in caplog.text
    fast = {"torch": lambda: lambda: None, "sparse": lambda: lambda: time.sleep(0.01)}
    assert choices.fastest("layer", fast) == "torch"  # measured now, beside the remembered time of the other
    with pytest.raises(MemoryError, match="4 GiB"):
        choices.fastest("another layer", {"torch": lambda: without_memory})


def test_each_number_of_threads_is_measured_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []

    def seconds(way: Any, _: float) -> float:
        threads = torch.get_num_threads()
        measured.append((way(), threads))
        return {"sparse": 1.0, "dense": 2.0 / threads}[way()]  # only the dense way gains from threads

    monkeypatch.setattr(timing_cache, "_seconds", seconds)
    ways = {name: lambda name=name: lambda: name for name in ("sparse", "dense")}
    choices, before, chosen = TimingCache(tmp_path / "engine.json"), torch.get_num_threads(), []
    try:
        for threads in (1, 4, 1, 4):
            torch.set_num_threads(threads)
            chosen.append(choices.fastest("layer", ways))
    finally:
        torch.set_num_threads(before)
    assert chosen == ["sparse", "dense", "sparse", "dense"]
    assert measured == [("sparse", 1), ("dense", 1), ("sparse", 4), ("dense", 4)]


def test_a_damaged_or_unwritable_file_only_costs_measuring(tmp_path: Path) -> None:
    def work() -> None:
        pass

    path = tmp_path / "engine.json"
    for content in ("{", "[]", json.dumps({timing_cache.machine(): {"layer": {"sparse": "fast"}}})):
        path.write_text(content)
        assert TimingCache(path).fastest("layer", {"sparse": lambda: work}) == "sparse"
        assert json.loads(path.read_text())[timing_cache.machine()]["layer"]["sparse"] >= 0
    (tmp_path / "file").write_text("")
    assert TimingCache(tmp_path / "file" / "engine.json").fastest("layer", {"sparse": lambda: work}) == "sparse"
