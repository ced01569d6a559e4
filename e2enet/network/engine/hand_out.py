"""How a layer's work is handed out to threads: whole samples of a batch where there are enough, else tiles and outputs.

A thread that is woken for a sliver of work costs more than it saves. Of a batch with as many samples as threads, each
thread gets whole samples. The values of a layer do not depend on the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Any

import torch

from e2enet.network.compiled import in_piece, run_in_threads

SHORT = 1e-3  # seconds: the whole samples of a layer that takes less are never cut if they suffice for all threads
SHORTEST_PIECE = 1e-4  # seconds: about ten times of what handing out a piece takes
PIECES_PER_THREAD = 4  # the next piece goes to the thread that is done first
VALUES_PER_PIECE = 2**17  # of loops that go over values once: about SHORTEST_PIECE

Piece = tuple[int, int, int, int]


@lru_cache(maxsize=1024)
def cut(samples: int, tiles: int, outputs: int, seconds: tuple[float, float], threads: int) -> tuple[Piece, ...]:
    """Return pieces (first, last, begin, end): the jobs first .. last - 1, outputs begin .. end - 1 of each.

    Job i is tile i % tiles of sample i // tiles.

    Args:
        samples: of the batch.
        tiles: of a sample.
        outputs: channels that are written.
        seconds: what one thread takes to fill the tiles of a sample, and to compute all outputs.
        threads: that share the pieces.
    """
    jobs = samples * tiles
    if threads == 1 or jobs == 0:
        return ((0, jobs, 0, outputs),)
    whole = 0
    if samples >= threads:
        whole = samples if sum(seconds) < SHORT else samples - samples % threads
    pieces = [(first * tiles, last * tiles, 0, outputs) for first, last in ranges(whole, PIECES_PER_THREAD * threads)]
    return (*pieces, *_cut_rest(whole * tiles, jobs, tiles, outputs, seconds, threads))


def _cut_rest(
    start: int, jobs: int, tiles: int, outputs: int, seconds: tuple[float, float], threads: int
) -> list[Piece]:
    """Cut the jobs from `start` on, which all threads share."""
    count = jobs - start
    if count == 0:
        return []
    fill, compute = (part / tiles for part in seconds)
    most = max(1, int(count * (fill + compute) / SHORTEST_PIECE))
    if most <= count or count >= PIECES_PER_THREAD * threads:
        together = ranges(count, min(most, PIECES_PER_THREAD * threads))
        return [(start + first, start + last, 0, outputs) for first, last in together]

    def slowest(parts: int) -> float:
        """Seconds of a thread if the outputs of each job are cut in parts, each of which fills its tile again."""
        return ceil(count * parts / threads) * (fill + compute / parts)

    parts = min(range(1, max(1, min(outputs, most // count)) + 1), key=slowest)
    return [(job, job + 1, begin, end) for job in range(start, jobs) for begin, end in ranges(outputs, parts)]


def ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut 0 .. count into as many (first, last) as there are parts, or fewer, none of them empty."""
    parts = min(count, parts)
    return list(pairwise(count * part // parts for part in range(parts + 1))) if parts else []


def pieces_of(samples: int, tiles: int, outputs: int, seconds: tuple[float, float]) -> tuple[Piece, ...]:
    """Return the pieces of `cut` for as many threads as torch uses."""
    return cut(samples, tiles, outputs, seconds, _threads())


def whole_samples(pieces: Sequence[Piece], tiles: int, outputs: int) -> int:
    """Return how many samples, from the first one on, lie in pieces of whole samples."""
    done = 0
    for first, last, begin, end in pieces:
        if first != done or first == last or last % tiles or end - begin < outputs:
            break
        done = last
    return done // max(1, tiles)


def run_rows(work: Callable[[int, int], Any], rows: int, values: int) -> None:
    """Call `work(first, last)` for ranges of rows, on as many threads as torch uses. values: of all rows together."""
    parts = max(1, min(values // VALUES_PER_PIECE, PIECES_PER_THREAD * _threads()))
    run_in_threads(work, ranges(rows, parts))


def run_samples(work: Callable[[int, int, int], Any], samples: int, rows: int, values: int) -> None:
    """Call `work(sample, first, last)` for ranges of every sample's rows, the rest as in `run_rows`."""
    parts = max(1, min(values // VALUES_PER_PIECE, PIECES_PER_THREAD * _threads()))
    each = 1 if samples >= _threads() else ceil(parts / samples)
    run_in_threads(work, [(sample, *edges) for sample in range(samples) for edges in ranges(rows, each)])


def _threads() -> int:
    return 1 if in_piece() else torch.get_num_threads()
