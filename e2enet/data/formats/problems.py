"""Problems of a dataset, case by case: collected first, reported once, in one line if many cases share them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2enet.common.errors import raise_problems

MAX_ALIKE = 5  # more cases with the same remark share one line
NAMED = 4  # cases that a shared line names

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One error or warning about a dataset.

    Attributes:
        case: Id of the case; None if it concerns the dataset as a whole.
        severity: "error" if training would be wrong, "warning" if it is only worth knowing.
        problem: What is wrong and what was expected, in words; it need not repeat case and file.
        file: The file (or folder) at fault, as the user would open it; None if there is no single one.
        alike: For a duplicate image, the earlier cases with the same image. The split decides the severity.
    """

    case: str | None
    severity: Severity
    problem: str
    file: str | None = None
    alike: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, str | None]:
        """The four fields that a report holds."""
        return {name: getattr(self, name) for name in ("case", "severity", "problem", "file")}

    def __str__(self) -> str:
        """One line: `case a: FILE: no such file`."""
        parts = [f"case {self.case}" if self.case else None, self.file, self.problem]
        return ": ".join(part for part in parts if part)


def dataset_error(problem: str, file: Path | None = None) -> Problem:
    """An error of the dataset as a whole."""
    return Problem(None, "error", problem, None if file is None else str(file))


def case_error(case: str, problem: str, file: Path | None = None) -> Problem:
    """An error of one case."""
    return Problem(case, "error", problem, None if file is None else str(file))


def case_warning(case: str, problem: str, file: Path | None = None) -> Problem:
    """A warning about one case, which can still be used."""
    return Problem(case, "warning", problem, None if file is None else str(file))


def in_short(problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Return each problem with the line to print. Many cases with the same problem share one line, with the first.

    Numbers and paths may differ: 500 labels that are off their image's grid give one line with a count.
    """
    alike: dict[tuple[str, bool, str], list[Problem]] = {}
    for problem in problems:
        kind = problem.severity, problem.case is None, _kind(problem.problem)
        alike.setdefault(kind, []).append(problem)
    lines = []
    for (_, of_dataset, _), members in alike.items():
        if of_dataset or len({problem.case for problem in members}) <= MAX_ALIKE:
            lines += [(problem, str(problem)) for problem in members]
        else:
            lines.append((members[0], _together(members)))
    return lines


def few_of_each(texts: Sequence[str]) -> list[str]:
    """Return the texts. Many that differ only in numbers and paths are reduced to the first with a count."""
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(_kind(text), []).append(text)
    lines = []
    for first, *others in alike.values():
        line, *rest = first.split("\n", 1)
        together = "\n".join([f"{line} (and {len(others)} more like it)", *rest])
        lines += [together] if len(others) >= MAX_ALIKE else [first, *others]
    return lines


def _kind(text: str) -> str:
    """Return a text with numbers and paths replaced, so that texts about different cases are equal."""
    return re.sub(r"\S*/\S*|[-+]?\d[\d.e+-]*", "#", text)


def _together(members: Sequence[Problem]) -> str:
    first = members[0]
    names = list(dict.fromkeys(str(problem.case) for problem in members))
    others = f"{', '.join(names[1:NAMED])} and {len(names) - NAMED} more"
    text, *rest = first.problem.split("\n", 1)
    return "\n".join([f"{len(names)} cases, such as {first.case}: {first.file}: {text} (alike: {others})", *rest])


def raise_errors(problems: Iterable[Problem], heading: str) -> None:
    """Raise one InputError that lists all errors under the heading; warnings alone pass."""
    raise_problems([text for _, text in in_short([one for one in problems if one.severity == "error"])], heading)
