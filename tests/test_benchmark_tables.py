"""Tables that the benchmarks print."""

from __future__ import annotations

import pytest

from benchmarks.measuring import new_table


def test_a_table_is_markdown() -> None:
    table = new_table("times", ("name", "s"))
    table.add_row("a | b", "12.5")
    table.add_row("two\nlines", "3")
    assert str(table).splitlines()[1:] == [
        "times",
        "",
        "| name      |    s |",
        "| --------- | ---: |",
        "| a \\| b    | 12.5 |",
        "| two lines |    3 |",
    ]
    with pytest.raises(ValueError, match="a row of 1 cells; expected 2"):
        table.add_row("a")
