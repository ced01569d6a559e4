"""Console output: names are never markup; `track` yields the items unchanged and writes two lines to a log file."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from e2enet.common import console as module
from e2enet.common.console import PlainConsole
from e2enet.common.errors import InputError, exit_on_input_error, printable

NAMES = ["Anterior [/T1]", "case[1]", "a [bold] b", ":smile: [red]x[/red]", "[link=x]y", "\\[b]"]


@pytest.mark.parametrize("terminal", [True, False])
def test_items_pass_unchanged(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", PlainConsole(file=stream, force_terminal=terminal, width=100))
    assert list(module.track(iter([3, 1, 2]), "cases", total=3)) == [3, 1, 2]
    text = stream.getvalue()
    assert "cases" in text
    if not terminal:
        assert text == "cases (3) ...\ncases: done\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, name: str, terminal: bool) -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=terminal, width=100, color_system=None)
    monkeypatch.setattr(module, "console", console)
    module.say(name)
    assert stream.getvalue() == f"{name}\n"
    table = Table("class", title=name)
    table.add_column(name)
    table.add_row(name, "1")
    console.print(table)
    assert sum(name in line for line in stream.getvalue().splitlines()) == 4
    stream.seek(0)
    stream.truncate()
    assert list(module.track([1], name)) == [1]
    assert all(name in line for line in stream.getvalue().split("\r") if "1/1" in line or "..." in line)
    assert name in stream.getvalue()


def test_signs_that_steer_a_terminal_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", PlainConsole(file=stream))
    module.say("a\x1b[2Jb\rc \udce9 \u00e9\nd")
    assert stream.getvalue() == "a\\x1b[2Jb\\rc \\udce9 \u00e9\nd\n"


def test_an_encoding_without_a_sign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = PlainConsole(file=stream, width=40)
    table = Table("class")
    table.add_row("L\u00e9sion")
    console.print(table)
    stream.flush()
    assert b"L\\xe9sion" in raw.getvalue()
    assert printable("L\u00e9sion \u2192", "latin-1") == "L\u00e9sion \\u2192"
    with pytest.raises(SystemExit), exit_on_input_error():
        raise InputError("a\x1b[2J: no such file")
    assert capsys.readouterr().err == "error: a\\x1b[2J: no such file\n"
