"""The table of mean ranks: Friedman's and Nemenyi's tests of an experiment's rows, one for each dataset."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from e2enet.common.errors import InputError
from e2enet.report.results.options import Options
from e2enet.report.results.ranks import RankTest, rank_test
from e2enet.report.results.runs import Runs
from e2enet.report.results.statistics import case_means
from e2enet.report.tables.columns import p_text, row_name
from e2enet.report.tables.groups import experiment_groups
from e2enet.report.tables.lines import scored_cases
from e2enet.report.tables.table import Best, Column, Line, Table, number, text

LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Ranking:
    """The rows of one dataset, ranked over the cases that all of them share.

    Attributes:
        data: The dataset's name.
        lines: The rows' lines of the main table, in its order.
        test: The tests, with the rows' labels as names; None if they are not possible.
        problem: Why they are not possible.
        left_out: Cases that some row scored and another did not.
    """

    data: str
    lines: tuple[Line, ...]
    test: RankTest | None = None
    problem: str = ""
    left_out: int = 0


def experiment_rankings(runs: Runs, experiment: str | None, lines: Sequence[Line], options: Options) -> list[Ranking]:
    """Rank the scored rows of each dataset and set of classes that has two or more.

    `lines` are those of `experiment_lines`.
    A case's score is its mean Dice over classes and runs, as in the Wilcoxon tests. The level is 1 - confidence.
    """
    rows: dict[str, list[tuple[Line, pd.Series]]] = {}
    for group, line in zip(experiment_groups(runs, experiment), lines, strict=True):
        scores = case_means(scored_cases(runs, group))
        if group.is_tested and scores.notna().any():
            rows.setdefault(line["scored_on"], []).append((line, scores))
    found = []
    for own in rows.values():
        if len(own) < 2:
            continue  # a row alone has no order
        table = pd.concat([scores for _, scores in own], axis=1, keys=[line["label"] for line, _ in own])
        ranked = tuple(line for line, _ in own)
        try:
            test = rank_test(table, alpha=options.alpha)
        except InputError as error:
            found.append(Ranking(ranked[0]["data"], ranked, problem=str(error)))
        else:
            found.append(Ranking(ranked[0]["data"], ranked, test, left_out=len(table) - test.cases))
    return found


def rank_table(title: str, rankings: Sequence[Ranking]) -> Table:
    """Return the rows by mean rank, each with the letters of its groups; notes say how it was computed.

    A line also holds Friedman's and Nemenyi's results, `p LABEL` for each other row: NaN if Friedman's test finds no
    difference, since pairs are compared only then.
    """
    columns = (
        Column("row", row_name, numeric=False),
        *((Column("dataset", text("data"), numeric=False),) if len(rankings) > 1 else ()),
        Column("mean rank", number("mean_rank", 2), best=Best("mean_rank", largest=False)),
        Column("group", text("group"), numeric=False),
        Column("p (Nemenyi)", lambda line: p_text(line["p_reference"]), optional=True),
        Column("cases", text("cases")),
    )
    lines = tuple(line for ranking in rankings if ranking.test for line in _lines(ranking, ranking.test))
    notes = [_note(ranking, several=len(rankings) > 1) for ranking in rankings]
    if lines:
        notes.insert(
            0,
            "Every case ranks the rows by its Dice, 1 is the best; equal ones share the mean rank. Rows with a letter "
            "in common are not told apart. p: Nemenyi's test against the reference, corrected for all pairs of rows.",
        )
    return Table(title, columns, lines, tuple(notes))


def _lines(ranking: Ranking, test: RankTest) -> list[dict[str, Any]]:
    references = [line["label"] for line in ranking.lines if line["reference"]]
    known = {line["label"]: line for line in ranking.lines}
    groups = test.groups()
    pairs = test.pairs if test.is_significant else test.pairs * math.nan
    lines = []
    for label, rank in test.mean_ranks.items():
        line = known[label]
        against = references[0] if len(references) == 1 and label not in references else None
        lines.append(
            {
                **{key: line[key] for key in ("row", "label", "role", "data", "scored_on", "reference")},
                "mean_rank": rank,
                "group": "".join(letter for letter, group in zip(LETTERS, groups, strict=False) if label in group),
                "p_reference": pairs.loc[label, against] if against else float("nan"),
                "cases": test.cases,
                "friedman_chi2": test.statistic,
                "friedman_p": test.p,
                "kendall_w": test.agreement,
                "critical_distance": test.critical_distance,
                **{f"p {other}": pairs.loc[label, other] for other in test.mean_ranks.index if other != label},
            }
        )
    return lines


def _note(ranking: Ranking, *, several: bool) -> str:
    prefix = f"{ranking.data}: " if several else ""
    test = ranking.test
    if test is None:
        return f"{prefix}Not ranked: {ranking.problem}."
    left_out = f", without {ranking.left_out} that a row lacks" if ranking.left_out else ""
    p = p_text(test.p)
    return (
        f"{prefix}Friedman's test over the {test.cases} cases that all {len(test.mean_ranks)} rows share{left_out}: "
        f"chi-squared({len(test.mean_ranks) - 1}) = {test.statistic:.2f}, p {p if p.startswith('<') else f'= {p}'}; "
        f"Kendall's W = {test.agreement:.2f} (1: all cases rank the rows alike, 0: no common order). Critical distance "
        f"of mean ranks at the level {test.alpha:.2g}: {test.critical_distance:.2f}."
    )
