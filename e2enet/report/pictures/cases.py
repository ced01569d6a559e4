"""Choose the cases to show: the worst and best of a row, and those on which two rows differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from e2enet.report.pictures.rows import Row


@dataclass(frozen=True)
class CaseScore:
    """One prediction: its case, the job that made it, its Dice (mean of classes, 0..1), and why it is shown."""

    case: str
    key: str
    dice: float
    title: str = ""


@dataclass(frozen=True)
class CasePair:
    """The same case predicted by two rows; `title` says what the second gains on the first, in points of Dice."""

    title: str
    first: CaseScore
    second: CaseScore


def prediction_scores(row: Row, cases: pd.DataFrame) -> pd.DataFrame:
    """Return key, fold, seed, case and dice of every prediction of the row's finished jobs.

    `dice` is the mean over the case's classes. Absent classes are left out, a missed one counts 0. A case without any
    class is left out.
    """
    own = cases[cases["key"].isin(row.finished["key"]) & ~cases["region"].astype(bool)]
    means = own.astype({"dice": float}).groupby(["key", "case"], sort=False)["dice"].mean().dropna().reset_index()
    return row.finished[["key", "fold", "seed"]].merge(means, on="key")


def worst_and_best(row: Row, cases: pd.DataFrame) -> list[CaseScore]:
    """Return the predictions of lowest and highest Dice; one if there is only one, none if nothing is scored."""
    scores = prediction_scores(row, cases).sort_values(["dice", "case", "key"], ignore_index=True)
    if scores.empty:
        return []
    chosen = {"worst": scores.iloc[0], "best": scores.iloc[-1]} if len(scores) > 1 else {"only": scores.iloc[0]}
    return [
        CaseScore(str(line["case"]), str(line["key"]), float(line["dice"]), f"{title} of {len(scores)}")
        for title, line in chosen.items()
    ]


def best_other(rows: Sequence[Row]) -> Row | None:
    """Return the row of highest mean Dice except the reference; None if no other is finished.

    Rows that were scored on the reference's classes and cases come first: means of others do not compare with them.
    """
    scored = [row for row in rows if not row.is_reference and pd.notna(row.finished["dice"].mean())]
    tasks = [row.line.get("competes_on") for row in rows if row.is_reference]
    same = [row for row in scored if row.line.get("competes_on") in tasks]
    return max(same or scored, key=lambda row: float(row.finished["dice"].mean()), default=None)


def telling_pairs(first: Row, second: Row, cases: pd.DataFrame) -> list[CasePair]:
    """Choose cases that both rows predicted: the second's largest gain, the median, and its smallest gain or loss.

    If a case has several runs, those of the lowest fold and seed are compared. Fewer than three common cases are all
    returned.
    """
    tables = [
        prediction_scores(row, cases).sort_values(["fold", "seed", "key"], key=_as_text).drop_duplicates("case")
        for row in (first, second)
    ]
    common = tables[0].merge(tables[1], on="case", suffixes=("_first", "_second"))
    common["gain"] = common["dice_second"] - common["dice_first"]
    common = common.sort_values(["gain", "case"], ascending=[False, True], ignore_index=True)
    places = [0, len(common) // 2, len(common) - 1] if len(common) > 2 else range(len(common))
    return [_pair(common.iloc[place]) for place in places]


def _as_text(column: pd.Series) -> pd.Series:
    """Compare as text, since folds are numbers or "all"."""
    return column.astype(str)


def _pair(line: pd.Series) -> CasePair:
    first, second = (
        CaseScore(str(line["case"]), str(line[f"key_{which}"]), float(line[f"dice_{which}"]))
        for which in ("first", "second")
    )
    return CasePair(f"{100 * line['gain']:+.1f} points", first, second)
