"""Tables as text: unknown values are blank, and text from outside cannot break the format."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from e2enet.report.results.options import Options
from e2enet.report.tables.columns import accuracy_columns, p_text, paired_columns
from e2enet.report.tables.markup import escape_latex, markdown_text, to_latex, to_markdown, write_values
from e2enet.report.tables.table import Best, Column, Table, number, text

COLUMNS = (
    Column("row", text("label"), numeric=False, brief=True),
    Column("Dice (%)", number("dice", 1), "obtained"),
    Column("NSD", number("nsd", 1), "obtained", optional=True),
)
# The best is the largest Dice among a dataset's rows. Single folds and runs of fold=all are no rows; B has one row.
RANKED = Table(
    "Ranked",
    (COLUMNS[0], Column("Dice (%)", number("dice", 1), best=Best("dice", largest=True))),
    tuple(
        {"label": label, "dice": dice, "competes_on": data, "role": role}
        for label, dice, data, role in (
            ("a", 89.94, "A", "row"),
            ("b", 90.02, "A", "row"),
            ("c", 89.96, "A", "row"),
            ("d", 99.0, "A", "training"),
            ("e", 98.0, "A", "run"),
            ("f", 95.0, "B", "row"),
            ("g", math.nan, "A", "row"),
        )
    ),
)
LINES = ({"label": "a|b_<c>", "dice": 89.96, "nsd": math.nan}, {"label": "50 %", "dice": math.nan, "nsd": None})
TABLE = Table("Rows & more", COLUMNS, LINES, ("Mean * of runs.",))


def test_markdown() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "**Rows & more**",
        "",
        "| row | obtained: Dice (%) |",
        "| --- | ---: |",
        r"| a\|b\_\<c\> | 90.0 |",
        "| 50 % |  |",
        "",
        r"Mean \* of runs.",
    ]


def test_markdown_signs() -> None:
    assert markdown_text("a_1 [/b](c) ~~x~~ $y$ &lt; & `z` \\") == (r"a\_1 \[/b\](c) \~\~x\~\~ \$y\$ \&lt; & \`z\` \\")


def test_markdown_of_notes_alone_and_of_nothing() -> None:
    assert to_markdown(Table("Title", COLUMNS, (), ("A note.",))) == "**Title**\n\nA note.\n"
    assert to_markdown(Table("Title", COLUMNS, ())) == ""


def test_latex() -> None:
    lines = to_latex(TABLE, "rows").splitlines()
    assert r"\caption{Rows \& more. Mean * of runs.}" in lines and r"\label{tab:rows}" in lines
    assert r"\begin{tabular}{lr}" in lines[lines.index(r"\resizebox{\linewidth}{!}{%") + 1]
    assert r"a\textbar{}b\_\textless{}c\textgreater{} & 90.0 \\" in lines and r"50 \% &  \\" in lines
    assert " & obtained " + r"\\" in lines and r"row & Dice (\%) \\" in lines
    assert lines[-1] == r"\end{table}" and lines[-2] == r"\end{tabular}}"


def test_the_best_of_a_column_is_bold() -> None:
    # 90.02 and 89.96 are both shown as 90.0.
    assert RANKED.emphasised() == [*([False, best] for best in (False, True, True, False, False, False, False))]
    assert to_markdown(RANKED).splitlines()[4:8] == [
        "| a | 89.9 |",
        "| b | **90.0** |",
        "| c | **90.0** |",
        "| d | 99.0 |",
    ]
    assert r"b & \textbf{90.0} \\" in to_latex(RANKED, "ranked") and r"d & 99.0 \\" in to_latex(RANKED, "ranked")
    smallest = replace(RANKED, columns=(Column("HD95", number("dice", 1), best=Best("dice", largest=False)),))
    assert [line for line, (best,) in enumerate(smallest.emphasised()) if best] == [0]
    published = tuple({"role": "row", "dice": value, "scored_on": "A"} for value in ("90.1-90.2", 90.0, None))
    assert replace(smallest, lines=published).emphasised() == [[False], [True], [False]]


def test_latex_signs() -> None:
    assert escape_latex(r"1_a & 50% \x{y} ~^#$ <0|1>") == (
        r"1\_a \& 50\% \textbackslash{}x\{y\} \textasciitilde{}\textasciicircum{}\#\$ "
        r"\textless{}0\textbar{}1\textgreater{}"
    )


def test_values_are_unrounded_and_unknown_ones_empty(tmp_path: Path) -> None:
    write_values(tmp_path / "rows.csv", TABLE)
    with (tmp_path / "rows.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"label": "a|b_<c>", "dice": "89.96", "nsd": ""},
            {"label": "50 %", "dice": "", "nsd": ""},
        ]


def test_brief_tables_keep_their_lines() -> None:
    assert TABLE.brief().cells() == [["a|b_<c>"], ["50 %"]]
    assert Table("", COLUMNS[1:], LINES).brief().columns == COLUMNS[1:]


@pytest.mark.parametrize(("p", "shown"), [(0.03125, "0.031"), (1.0, "1"), (2e-5, "< 0.0001"), (math.nan, "")])
def test_p_values(p: float, shown: str) -> None:
    assert p_text(p) == shown


def test_accuracy_cells() -> None:
    line = {"label": "S = 0.8", "published_dice": "90.1-90.2", "published_params": 9.44, "state": "2 of 2", "runs": 2}
    line |= {"dice": 87.654, "dice_sd": 0.321, "dice_low": 86.0, "dice_high": 89.0, "nsd": 95.0, "hd95": 1.234}
    line |= {"difference": 1.234, "difference_low": -0.5, "difference_high": 2.0, "rank_biserial": -0.25}
    line |= {"p": 0.25, "p_holm": 0.5, "reference": True, "cases": 52, "missed": 1, "structures": 208, "invented": 3}
    table = Table("", accuracy_columns(Options(confidence=0.9), several_datasets=False), (line,))
    shown = dict(zip(((c.group, c.heading) for c in table.shown()), table.cells()[0], strict=True))
    assert shown == {
        ("", "row"): "S = 0.8 (reference)",
        ("published", "params (M)"): "9.44",
        ("published", "Dice (%)"): "90.1-90.2",
        ("obtained", "runs"): "2 of 2",
        ("obtained", "Dice (%)"): "87.65 ± 0.32",
        ("obtained", "90 % interval"): "86.00 to 89.00",
        ("obtained", "NSD (%)"): "95.00",
        ("obtained", "HD95 (mm)"): "1.23",
        ("test", "p (Holm)"): "0.5",
        ("", "cases"): "52",
        ("", "missed"): "1 of 208",
        ("", "invented"): "3",
    }
    line |= {"against": "S = 0.9", "pairs": 52}
    single = line | {"difference_low": math.nan, "difference_high": math.nan}  # one case has no interval
    table = Table("", paired_columns(Options(confidence=0.9)), (line, single))
    assert [column.heading for column in table.shown()][3:6] == [
        *("median difference", "90 % interval", "rank-biserial r")
    ]
    assert table.cells()[0] == ["S = 0.8", "S = 0.9", "52", "+1.23", "-0.50 to +2.00", "-0.25", "0.25", "0.5"]
    assert table.cells()[1][3:5] == ["+1.23", ""]
