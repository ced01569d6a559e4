"""Steps that a gradient scaler skipped are read one step late, or when the number must be known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from e2enet.network.step_count import StepCount
from e2enet.system.on_host import OnHost


def test_a_step_is_read_when_the_next_one_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[float] = []
    read = OnHost.read
    monkeypatch.setattr(OnHost, "read", lambda self: reads.extend(read(self)) or read(self))
    count = StepCount()
    count.set(4)

    def add(found: float | None) -> None:
        optimizer: Any = SimpleNamespace() if found is None else SimpleNamespace(found_inf=torch.tensor(found))
        count.add(optimizer)

    add(None)
    assert list(count.possible()) == [5] and count.took_last() and reads == []
    add(0.0)
    assert list(count.possible()) == [5, 6] and reads == []
    add(1.0)
    assert list(count.possible()) == [6, 7] and reads == [0.0]
    assert not count.took_last() and reads == [0.0, 1.0]
    assert count.read() == 6 and list(count.possible()) == [6]
