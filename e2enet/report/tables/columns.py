"""Columns of the experiments' tables: accuracy beside the published one, and cost."""

from __future__ import annotations

from e2enet.report.options import Options
from e2enet.report.tables.table import Column, Line, is_known, number, text

PUBLISHED, COUNTED, OBTAINED, TEST = "published", "counted", "obtained", "test"
SMALLEST_P = 1e-4


def accuracy_columns(options: Options, *, several_datasets: bool) -> tuple[Column, ...]:
    """Rows with published and counted cost, published and obtained accuracy, the test, and the counts."""
    return (
        Column("row", text("label"), numeric=False, brief=True),
        *((Column("dataset", text("data"), numeric=False),) if several_datasets else ()),
        Column("params (M)", number("published_params", 2), PUBLISHED, optional=True),
        Column("GFLOP", number("published_gflops", 2), PUBLISHED, optional=True),
        Column("Dice (%)", number("published_dice", 1), PUBLISHED, optional=True, brief=True),
        Column("NSD (%)", number("published_nsd", 1), PUBLISHED, optional=True),
        Column("params (M)", number("counted_params", 2), COUNTED, optional=True),
        Column("GFLOP", number("counted_gflops_paper", 2), COUNTED, optional=True),
        Column("runs", text("state"), OBTAINED, brief=True),
        Column("Dice (%)", _mean_and_deviation, OBTAINED, brief=True),
        Column(f"{100 * options.confidence:g} % interval", interval, OBTAINED, brief=True),
        Column("NSD (%)", number("nsd", 2), OBTAINED),
        Column("HD95 (mm)", number("hd95", 2), OBTAINED),
        Column("p", _p_value, TEST, optional=True),
        Column("p (Holm)", lambda line: p_text(line["p_holm"]), TEST, optional=True, brief=True),
        Column("cases", lambda line: _count(line, "cases")),
        Column("missed", _missed, brief=True),
    )


def cost_columns() -> tuple[Column, ...]:
    """What a row costs: counted at the paper's scale, then of the runs themselves, counted and measured."""
    scale, run = "full scale", "these runs"
    return (
        Column("row", text("label"), numeric=False),
        Column("params (M)", number("counted_params", 2), scale, optional=True),
        Column("GFLOP, paper", number("counted_gflops_paper", 2), scale, optional=True),
        Column("GFLOP, exact", number("counted_gflops_exact", 2), scale, optional=True),
        Column("density", number("density", 3), run, optional=True),
        Column("params (M)", number("params", 3), run, optional=True),
        Column("GFLOP, paper", number("gflops_paper", 3), run, optional=True),
        Column("GFLOP, exact", number("gflops_exact", 3), run, optional=True),
        Column("latency (ms)", number("latency_s", 1, 1e3), run, optional=True),
        Column("peak memory (MiB)", number("peak_bytes", 0, 2**-20), run, optional=True),
        Column("time of a job (min)", number("seconds", 1, 1 / 60), run, optional=True),
        Column("PT", number("pt", 3), run, optional=True),
    )


def interval(line: Line) -> str:
    """The bootstrap interval of the Dice as "low to high"."""
    if not is_known(line["dice_low"]):
        return ""
    return f"{line['dice_low']:.2f} to {line['dice_high']:.2f}"


def p_text(p: float) -> str:
    """A p value with two digits that count; "" for none."""
    if not is_known(p):
        return ""
    return f"< {SMALLEST_P:g}" if p < SMALLEST_P else f"{p:.2g}"


def _mean_and_deviation(line: Line) -> str:
    mean, deviation = number("dice", 2)(line), number("dice_sd", 2)(line)
    return f"{mean} ± {deviation}" if deviation else mean


def _p_value(line: Line) -> str:
    return "reference" if line["reference"] and line["runs"] else p_text(line["p"])


def _count(line: Line, key: str) -> str:
    return str(line[key]) if line["runs"] else ""


def _missed(line: Line) -> str:
    """Missed structures of those that the references hold."""
    return f"{line['missed']} of {line['structures']}" if line["runs"] else ""
