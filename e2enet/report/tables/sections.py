"""Build all tables of the report: a section per experiment, and the jobs that did not finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from e2enet.common.errors import InputError
from e2enet.report.results.options import Options
from e2enet.report.results.runs import Runs
from e2enet.report.tables.columns import accuracy_columns, cost_columns, paired_columns
from e2enet.report.tables.conclusions import (
    accuracy_conclusion,
    cost_conclusion,
    effect_conclusion,
    published_conclusion,
    rank_conclusion,
    settings_conclusion,
    unfinished_conclusion,
)
from e2enet.report.tables.differences import published_differences, setting_differences
from e2enet.report.tables.groups import experiment_groups
from e2enet.report.tables.lines import Counter, experiment_lines
from e2enet.report.tables.ranks import Ranking, experiment_rankings, rank_table
from e2enet.report.tables.table import Column, Line, Table, is_known, number, text

UNFINISHED = ("crashed", "interrupted")
FEW_CASES = 10  # below, a percentile bootstrap covers the mean of skewed scores clearly less often than it says
SMALL_P = 1e-3  # a smallest possible p below this is no limit in practice


@dataclass(frozen=True)
class Section:
    """The tables of one experiment, or of the jobs outside of any (`experiment` None).

    Attributes:
        experiment: Its name.
        name: Name of its files: <name>.md, .csv, .tex.
        title: Its heading.
        accuracy: Its main table; the lines of `cost` are the same.
        paired: Each row's test against the reference with its effect sizes; without lines if nothing is tested.
        ranks: Rows by mean rank over cases (Friedman, Nemenyi); without lines if they cannot be ranked.
        rankings: The same, one for each dataset with two rows or more.
        cost: What the rows cost.
        published: Published beside obtained Dice; without lines if nothing can be compared.
        settings: What differs from full scale; without lines if nothing does.
    """

    experiment: str | None
    name: str
    title: str
    accuracy: Table
    paired: Table
    ranks: Table
    rankings: tuple[Ranking, ...]
    cost: Table
    published: Table
    settings: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        """All six, in the order of reading."""
        return (self.accuracy, self.paired, self.ranks, self.cost, self.published, self.settings)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The rows with all their values."""
        return self.accuracy.lines


@dataclass(frozen=True)
class Report:
    """Sections in the order of the manifest, and a table of crashed and interrupted jobs."""

    runs: Runs
    sections: tuple[Section, ...]
    unfinished: Table


def build_report(runs: Runs, options: Options, *, count: Counter, reference: str | None = None) -> Report:
    """Compute every table of a sweep.

    Args:
        runs: The sweep.
        options: Settings of the statistics.
        count: Counts a row's cost at the paper's scale (`e2enet.report.costs.count_row`).
        reference: The row that others are tested against, in the experiments that have it; None: each one's own.

    Raises:
        InputError: no experiment has the row `reference`.
    """
    experiments: list[str | None] = list(dict.fromkeys([*runs.ablations, *runs.jobs["experiment"].dropna()]))
    if runs.jobs["experiment"].isna().any():
        experiments.append(None)
    names = {
        experiment: [group.names for group in experiment_groups(runs, experiment) if group.is_tested]
        for experiment in experiments
    }
    having = [experiment for experiment, own in names.items() if any(reference in group for group in own)]
    if reference is not None and not having:
        known = dict.fromkeys(group[0] for own in names.values() for group in own)
        raise InputError(f"reference {reference!r}: no row of {runs.folder}; expected {' | '.join(known)}")
    sections = []
    for experiment in experiments:
        own = reference if experiment in having else None
        lines = experiment_lines(runs, experiment, options, count=count, reference=own)
        sections.append(_section(runs, experiment, tuple(lines), options))
    return Report(runs, tuple(sections), unfinished_jobs(runs))


def unfinished_jobs(runs: Runs) -> Table:
    """Return a table with a line per crashed or interrupted job: how far it came, and its error."""
    jobs = runs.jobs[runs.jobs["state"].isin(UNFINISHED)].drop_duplicates("key")
    columns = (
        Column("job", text("folder"), numeric=False),
        Column("state", text("state"), numeric=False),
        Column("epoch", number("epoch", 0)),
        Column("of", number("epochs", 0)),
        Column("error", text("error"), numeric=False),
    )
    lines = tuple(line | {"folder": _relative(runs, line["folder"])} for line in jobs.to_dict("records"))
    note = "A relaunch of the same command goes on with them; the traceback of a crashed job is in its job.json."
    return Table(
        "Jobs that did not finish", columns, lines, (note,) if lines else (), unfinished_conclusion(len(lines))
    )


def _section(runs: Runs, experiment: str | None, lines: tuple[Line, ...], options: Options) -> Section:
    ablation = runs.ablations.get(experiment or "", {})
    title = str(ablation.get("title") or experiment or runs.name)
    several = len({line["data"] for line in lines if line["data"]}) > 1
    empty = Table("", (), ())
    rankings = tuple(experiment_rankings(runs, experiment, lines, options))
    published, settings = empty, empty
    if experiment:
        settings = setting_differences(runs, experiment)
        settings = replace(settings, conclusion=settings_conclusion(len(settings.lines)))
        published = published_differences(lines)
        published = replace(published, conclusion=published_conclusion(published.lines, len(settings.lines)))
    return Section(
        experiment=experiment,
        name=experiment or "runs",
        title=title,
        accuracy=Table(
            f"{title}: accuracy",
            accuracy_columns(options, several_datasets=several),
            lines,
            _notes(lines, options),
            accuracy_conclusion(lines, options),
        ),
        paired=_paired_table(title, lines, options),
        ranks=replace(rank_table(f"{title}: ranks over cases", rankings), conclusion=rank_conclusion(rankings)),
        rankings=rankings,
        cost=Table(f"{title}: cost", cost_columns(), lines, _cost_notes(lines, options), cost_conclusion(lines)),
        published=published,
        settings=settings,
    )


def _notes(lines: tuple[Line, ...], options: Options) -> tuple[str, ...]:
    """Explain how the numbers in the main table were computed."""
    notes = [
        "Dice: mean ± standard deviation of the runs' means, over folds and seeds. Interval: "
        f"{100 * options.confidence:g} % percentile bootstrap over cases ({options.resamples} resamples, seed "
        f"{options.seed}) of that mean over runs. Cases: scored validation cases. Missed: structures of the references "
        "that predictions lack; invented: structures "
        "that predictions have and the references lack; both over all runs.",
        "Bold: the best of a column, among the rows of one dataset and its classes, scored on the same cases.",
        "Scores are of best.ckpt, which was chosen by validation on the same cases: they are biased upwards, alike in "
        "all rows, as cross-validation with a final checkpoint (nnU-Net's) is not.",
    ]
    tasks = {(line["data"], line["scored_on"]) for line in lines if line["runs"]}
    if len(tasks) > len({data for data, _ in tasks}):
        notes.append("Rows that are scored on different classes are not compared with each other.")
    rows = [line for line in lines if line["role"] == "row" and line["runs"]]
    if len({line["competes_on"] for line in rows}) > len({line["scored_on"] for line in rows}):
        notes.append(
            "Some rows are scored on other cases, as in a sweep under way: their means do not compare, and they "
            "compete for no best, PT or front with each other. Tests are about the cases that both rows share."
        )
    if 0 < min((line["cases"] for line in rows), default=0) < FEW_CASES:
        notes.append(f"Bootstrap intervals over fewer than {FEW_CASES} cases are too narrow.")
    if any(line["role"] == "training" for line in lines):
        notes.append(
            "Runs of fold=all are scored on the cases that they were trained on: they are in no mean, interval, test "
            "or PT, and in no picture of accuracy."
        )
    return tuple(notes)


def _paired_table(title: str, lines: tuple[Line, ...], options: Options) -> Table:
    tests = tuple(line for line in lines if is_known(line["p"]))
    notes = []
    if tests:
        references = [line["label"] for line in lines if line["reference"]]
        against = " or ".join(references) + (" of the same configuration" if len(references) > 1 else "")
        pairs = " or ".join(str(number) for number in sorted({line["pairs"] for line in tests}))
        notes.append(
            f"p: two-sided paired Wilcoxon test of the cases' Dice against {against} ({pairs} cases); Holm's "
            f"correction for all tests of this table ({len(tests)}). Median difference: over the cases, in points of "
            "Dice, with a percentile bootstrap interval over cases. r: matched-pairs rank-biserial correlation, +1 if "
            "every case is better and -1 if every case is worse."
        )
        notes += _smallest_p(tests)
    words = effect_conclusion(tests, options)
    return Table(f"{title}: tests against the reference", paired_columns(options), tests, tuple(notes), words)


def _smallest_p(tests: Sequence[Line]) -> list[str]:
    """Return a note on the smallest possible p, if there are too few cases for a small one."""
    count = min(line["pairs"] for line in tests)
    smallest = min(1.0, 2 * 0.5**count)
    if smallest * len(tests) < SMALL_P:
        return []
    corrected = min(1.0, smallest * len(tests))
    alone = f"The smallest possible p with {count} cases, where each of them is better, is {smallest:.3g}"
    return [alone + (f"; corrected, {corrected:.3g}." if len(tests) > 1 else ".")]


def _cost_notes(lines: tuple[Line, ...], options: Options) -> tuple[str, ...]:
    notes = [
        "GFLOP: of one patch, 2 per multiply-add of active kernels; paper counts every output voxel of a transposed "
        "convolution with the whole kernel, as the published columns do, exact does not."
    ]
    if any(is_known(line[figure]) for line in lines for figure in ("latency_s", "peak_bytes")):
        notes.append(
            "Latency of one patch and peak memory of a training step: measured, see measured.json, which also says why "
            "a figure is missing."
        )
    if any(is_known(line["pt"]) for line in lines):
        notes.append(
            f"PT = {options.accuracy:g} Dice / Dice_max + {options.cost:g} (P_min / P + F_min / F), F by the paper's "
            "convention. The paper's weights are not known: these are ours."
        )
    return tuple(notes)


def _relative(runs: Runs, folder: str) -> str:
    prefix = f"{runs.folder}/"
    return folder.removeprefix(prefix)
