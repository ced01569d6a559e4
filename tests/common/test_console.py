"""Progress goes through the items unchanged and stays two lines in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from e2enet.common import console as module


@pytest.mark.parametrize("terminal", [True, False])
def test_items_pass_unchanged(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=stream, force_terminal=terminal, width=100))
    assert list(module.track(iter([3, 1, 2]), "cases", total=3)) == [3, 1, 2]
    text = stream.getvalue()
    assert "cases" in text
    if not terminal:
        assert text == "cases (3) ...\ncases: done\n"
