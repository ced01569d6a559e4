"""Columns of the experiments' tables: accuracy beside the published one, and cost."""

from __future__ import annotations

from dataclasses import replace

from e2enet.report.results.options import Options
from e2enet.report.tables.table import Best, Column, Line, is_known, number, text

PUBLISHED, COUNTED, OBTAINED, TEST = "published", "counted", "obtained", "test"
SMALLEST_P = 1e-4


def accuracy_columns(options: Options, *, several_datasets: bool) -> tuple[Column, ...]:
    """Return the columns of published and counted cost, published and obtained accuracy, corrected p, and counts."""
    return (
        Column("row", row_name, numeric=False, brief=True),
        *((Column("dataset", text("data"), numeric=False),) if several_datasets else ()),
        _published("params (M)", "params", 2, largest=False),
        _published("GFLOP", "gflops", 2, largest=False),
        replace(_published("Dice (%)", "dice", 1, largest=True), brief=True),
        _published("NSD (%)", "nsd", 1, largest=True),
        _counted("params (M)", "params", COUNTED),
        _counted("GFLOP", "gflops_paper", COUNTED),
        Column("runs", text("state"), OBTAINED, brief=True),
        Column("Dice (%)", _mean_and_deviation, OBTAINED, brief=True, best=Best("dice", largest=True)),
        Column(f"{100 * options.confidence:g} % interval", interval, OBTAINED, brief=True),
        Column("NSD (%)", number("nsd", 2), OBTAINED, best=Best("nsd", largest=True)),
        Column("HD95 (mm)", number("hd95", 2), OBTAINED, best=Best("hd95", largest=False)),
        Column("p (Holm)", lambda line: p_text(line["p_holm"]), TEST, optional=True, brief=True),
        Column("cases", lambda line: _count(line, "cases")),
        Column("missed", _missed, brief=True),
        Column("invented", lambda line: _count(line, "invented"), brief=True),
    )


def paired_columns(options: Options) -> tuple[Column, ...]:
    """Return the columns of the paired tests: pairs, effect sizes, p before and after the correction."""
    return (
        Column("row", text("label"), numeric=False),
        Column("tested against", text("against"), numeric=False),
        Column("cases", text("pairs")),
        Column("median difference", lambda line: _signed(line["difference"])),
        Column(f"{100 * options.confidence:g} % interval", _difference_interval),
        Column("rank-biserial r", lambda line: _signed(line["rank_biserial"])),
        Column("p", lambda line: p_text(line["p"])),
        Column("p (Holm)", lambda line: p_text(line["p_holm"])),
    )


def cost_columns() -> tuple[Column, ...]:
    """Return the columns of cost: counted at the paper's scale, then counted and measured for the runs themselves."""
    scale, run = "full scale", "these runs"
    return (
        Column("row", row_name, numeric=False),
        _counted("params (M)", "params", scale),
        _counted("GFLOP, paper", "gflops_paper", scale),
        _counted("GFLOP, exact", "gflops_exact", scale),
        Column("density", number("density", 3), run, optional=True),
        _obtained("params (M)", "params", 3),
        _obtained("GFLOP, paper", "gflops_paper", 3),
        _obtained("GFLOP, exact", "gflops_exact", 3),
        _obtained("latency (ms)", "latency_s", 1, 1e3),
        _obtained("peak memory (MiB)", "peak_bytes", 0, 2**-20),
        _obtained("time of a job (min)", "seconds", 1, 1 / 60),
        Column("PT", number("pt", 3), run, optional=True, best=Best("pt", largest=True)),
    )


def interval(line: Line) -> str:
    """The bootstrap interval of the Dice as "low to high"."""
    if not is_known(line["dice_low"]):
        return ""
    return f"{line['dice_low']:.2f} to {line['dice_high']:.2f}"


def row_name(line: Line) -> str:
    """Return the row's label, with "(reference)" behind it if other rows are tested against it."""
    return f"{line['label']} (reference)" if line["reference"] else str(line["label"])


def p_text(p: float) -> str:
    """Format a p value with two significant digits; "" if unknown."""
    if not is_known(p):
        return ""
    return f"< {SMALLEST_P:g}" if p < SMALLEST_P else f"{p:.2g}"


def _published(heading: str, name: str, digits: int, *, largest: bool) -> Column:
    key = f"published_{name}"
    return Column(heading, number(key, digits), PUBLISHED, optional=True, best=Best(key, largest, "published_on"))


def _counted(heading: str, name: str, group: str) -> Column:
    key = f"counted_{name}"
    return Column(heading, number(key, 2), group, optional=True, best=Best(key, False, "counted_at"))


def _obtained(heading: str, key: str, digits: int, factor: float = 1.0) -> Column:
    return Column(heading, number(key, digits, factor), "these runs", optional=True, best=Best(key, largest=False))


def _mean_and_deviation(line: Line) -> str:
    mean, deviation = number("dice", 2)(line), number("dice_sd", 2)(line)
    return f"{mean} ± {deviation}" if deviation else mean


def _difference_interval(line: Line) -> str:
    if not is_known(line["difference_low"]):
        return ""
    return f"{line['difference_low']:+.2f} to {line['difference_high']:+.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if is_known(value) else ""


def _count(line: Line, key: str) -> str:
    return str(line[key]) if line["runs"] else ""


def _missed(line: Line) -> str:
    """Return how many of the references' structures were missed."""
    return f"{line['missed']} of {line['structures']}" if line["runs"] else ""
