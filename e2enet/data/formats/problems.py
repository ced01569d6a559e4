"""What is wrong with a dataset, case by case: collected first, reported once, in a line where many cases have it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2enet.common.errors import raise_problems

MAX_ALIKE = 5  # cases with the same remark that have a line each
NAMED = 4  # cases that the line for all of them names

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset.

    Attributes:
        case: The id of the case that has it; None where it concerns the dataset as a whole.
        severity: "error" where training would be wrong, "warning" where it is only worth knowing.
        problem: What is wrong and what was expected, in words; it need not repeat case and file.
        file: The file (or folder) at fault, as the user would open it; None where there is no single one.
        alike: Cases before it of the same image, where that is what is wrong: the split decides how much it matters.
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
    """Something about a case that does not keep it from being used."""
    return Problem(case, "warning", problem, None if file is None else str(file))


def in_short(problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """A line per problem, and one for many cases that have the same: the first of them, and what to print.

    Numbers and paths may differ: 500 labels that lie off their image's grid are one remark and a count.
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
    """The texts, of which those that differ in numbers and paths alone are one and a count where there are many."""
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
    """A text without what tells one case of it from another: numbers and paths."""
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
