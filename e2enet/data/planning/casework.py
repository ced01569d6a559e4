"""What reading and preparing cases have in common: how large they are, and what is said when some fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from e2enet.common.errors import raise_problems
from e2enet.common.processes import Outcome
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import open_image

# Voxels, of all cases together, up to which work is done in this process: it takes some seconds, which is
# what starting others would take.
SMALL_VOXELS = 40_000_000


def image_voxels(case: Case) -> int:
    """Voxels of all channels of a case's image, from the headers. InputError where a file cannot be opened."""
    return sum(math.prod(open_image(file).shape) for file in case.images)


def raise_failures(outcomes: Sequence[Outcome[Case, Any]], heading: str) -> None:
    """Raise for the outcomes that failed, with every such case's id; return quietly where none did.

    Raises:
        InputError: where the cases are the user's to mend, or workers were killed, most often for want of
            memory: starting again goes on.
        RuntimeError: with the workers' own tracebacks, where any failed by a fault of ours.
    """
    failures = [(outcome.item.id, outcome.failure) for outcome in outcomes if outcome.failure is not None]
    failures.sort(key=lambda pair: pair[0])
    ours = [(name, failure) for name, failure in failures if failure.traceback and not failure.wrong_input]
    if ours:
        raise RuntimeError("\n".join([heading, *(f"case {name}: {failure.traceback}" for name, failure in ours)]))
    raise_problems([f"case {name}: {failure.message}" for name, failure in failures], heading)
