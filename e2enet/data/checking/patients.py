"""Find ids that look like several scans of one patient, which folds by case would separate."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from e2enet.data.cases.choice import CaseChoice
from e2enet.data.cases.split_file import NNUNET_FILE
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.problems import Problem

# Words before a number or at the end of an id that distinguish the scans of a patient.
WORDS = (
    *("visit", "session", "ses", "scan", "timepoint", "time", "tp", "frame", "followup", "fu", "exam", "study"),
    *("baseline", "phase", "series", "run"),
)
# Endings that distinguish scans without such a word: x_1, x_12, x_ED, x-000.
SHORT = re.compile(r".*\d.*(?P<sign>[_-])([a-z]{0,2}\d{1,3}|[a-z]{1,2}|left|right|pre|post)", re.IGNORECASE)
FEWEST_PATIENTS = 5  # fewer cannot be split into five folds, and the match is probably part of the dataset's name
MAX_SCANS = 8  # average per patient up to which ids without such a word are matched


@dataclass(frozen=True)
class PatientGuess:
    """A pattern for `data.group` that matches all ids, its number of patients, and two ids of one patient."""

    pattern: str
    patients: int
    example: tuple[str, str]


def remarks_on_split(dataset: RawDataset, choice: CaseChoice) -> list[Problem]:
    """Warn if the five folds may separate scans of a patient, or if a split file beside dataset.json is not used."""
    if choice.rule != "five_fold":
        return []
    remarks = []
    beside = dataset.folder / NNUNET_FILE
    if beside.is_file():
        text = f"is not used: the five folds are our own; data.split={NNUNET_FILE} takes its folds"
        remarks.append(Problem(None, "warning", text, str(beside)))
    guess = guess_patients([case.id for case in dataset.training]) if choice.group is None else None
    if guess is not None:
        text = (
            f"ids look like several scans of one patient ({len(dataset.training)} cases of {guess.patients}, such as "
            f"{' and '.join(guess.example)}), and folds by case part them; 'data.group=\"{guess.pattern}\"' keeps them "
            "together"
        )
        remarks.append(Problem(None, "warning", text, str(dataset.folder)))
    return remarks


def guess_patients(case_ids: Sequence[str]) -> PatientGuess | None:
    """Return the pattern by which ids look like several scans of one patient; None if they do not."""
    for word in WORDS:
        marked = re.compile(rf"[_-]{word}(?=[_-]?\d|$)", re.IGNORECASE)
        signs = {match[0] for name in case_ids if (match := marked.search(name))}
        if len(signs) != 1:
            continue
        sign = signs.pop()
        every = all(marked.search(name) for name in case_ids)
        guess = _grouped(case_ids, f"(.+){sign}" if every else f"(.+?)({sign}|$)")
        if guess is not None:
            return guess
    matches = [SHORT.fullmatch(name) for name in case_ids]
    signs = {match["sign"] for match in matches if match}
    if len(signs) != 1 or not all(matches):
        return None
    guess = _grouped(case_ids, f"(.+){signs.pop()}")
    return guess if guess and len(case_ids) <= MAX_SCANS * guess.patients else None


def _grouped(case_ids: Sequence[str], pattern: str) -> PatientGuess | None:
    """Return a pattern as a guess; None if it misses an id, groups no two ids, or makes too few groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(case_ids):
        match = re.search(pattern, name)
        if match is None:
            return None
        groups[match[1]].append(name)
    example = next((names for names in groups.values() if len(names) > 1), None)
    if example is None or len(groups) < FEWEST_PATIENTS:
        return None
    return PatientGuess(pattern, len(groups), (example[0], example[1]))
