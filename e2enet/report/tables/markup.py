"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from e2enet.common.files import write_csv
from e2enet.report.tables.table import Column, Table, is_known


def to_markdown(table: Table) -> str:
    """Return a Markdown table with its title in bold above, conclusion and notes below; "" without lines and notes."""
    if not table.lines and not table.notes:
        return ""
    columns = table.shown()
    rule = ["---:" if column.numeric else "---" for column in columns]
    rows = [[_markdown_cell(heading(column)) for column in columns], rule] if table.lines else []
    rows += _marked(table, _markdown_cell, "**{}**")
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    words = f"**In words:** {markdown_text(table.conclusion)}" if table.conclusion else ""
    return joined([f"**{markdown_text(table.title)}**", "\n".join(lines), words, *map(markdown_text, table.notes)])


def to_latex(table: Table, label: str) -> str:
    """Return a LaTeX `table` with groups over their columns; needs booktabs, and graphicx to fit the line width."""
    columns = table.shown()
    headings = [(column.group, column.heading) for column in columns]
    cells = _marked(table, escape_latex, r"\textbf{{{}}}")
    frame = pd.DataFrame(cells, columns=pd.MultiIndex.from_tuples(headings))
    if not any(column.group for column in columns):
        frame.columns = pd.Index([column.heading for column in columns])
    style = frame.style.hide(axis="index").format_index(escape_latex, axis=1)
    tabular = style.to_latex(
        hrules=True,
        multicol_align="c",
        column_format="".join("r" if column.numeric else "l" for column in columns),
    )
    texts = [f"{table.title}.", table.conclusion, *table.notes]
    caption = escape_latex(" ".join(text for text in texts if text))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\linewidth}{!}{%",
            tabular.strip() + "}",
            r"\end{table}",
            "",
        ]
    )


def write_values(path: Path, table: Table) -> None:
    """Write all values of the lines as CSV, unrounded; unknown ones are empty."""
    rows = [{key: value if is_known(value) else "" for key, value in line.items()} for line in table.lines]
    write_csv(path, rows)


def heading(column: Column) -> str:
    """Return a column's group and heading as one text, for a single line of headings."""
    return f"{column.group}: {column.heading}" if column.group else column.heading


def markdown_text(content: str) -> str:
    """Escape text so that Markdown shows it as it is: names and errors come from outside."""
    return re.sub(r"([\\`*_\[\]<>~$]|&(?=#?\w+;))", r"\\\1", content)


def escape_latex(content: str) -> str:
    """Escape text so that LaTeX prints it as it is."""
    signs = {sign: rf"\{sign}" for sign in "&%$#_{}"}
    signs |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # In LaTeX's default encoding these are other characters: < prints as an inverted exclamation mark.
    signs |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return "".join(signs.get(sign, sign) for sign in content)


def joined(parts: Sequence[str]) -> str:
    """Join blocks of Markdown with an empty line between them; empty blocks are left out."""
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _marked(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """Return the cells escaped for a format, the best of each column in bold."""
    return [
        [bold.format(escape(cell)) if best else escape(cell) for cell, best in zip(cells, marks, strict=True)]
        for cells, marks in zip(table.cells(), table.emphasised(), strict=True)
    ]


def _markdown_cell(content: str) -> str:
    return markdown_text(content).replace("|", r"\|").replace("\n", " ")
