"""In words: what may be concluded from the numbers of a table, and what not.

Everything is made from the values of the table's lines. A significant test is told as a difference, one that is not as
"not found", never as equality. The level is 1 - confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from e2enet.report.results.options import Options
from e2enet.report.results.ranks import RankTest
from e2enet.report.tables.ranks import Ranking
from e2enet.report.tables.table import Line, is_known

COMPARED = ("row", "mean")  # roles of lines that take part in tests
NOT_EQUAL = "that does not show that they are equal"


def accuracy_conclusion(lines: Sequence[Line], options: Options) -> str:
    """Tell which rows score higher or lower than the reference, how it compares with seeds, and what p is about."""
    scored = [line for line in lines if line["role"] in COMPARED and is_known(line["dice"])]
    if not scored:
        return "No run has scores yet, so nothing can be concluded."
    tests = [line for line in scored if is_known(line["p"])]
    if not tests:
        if len(scored) == 1:
            reason = "One row has scores"
        elif any(line["reference"] for line in scored):
            reason = "No row shares cases of one dataset with a reference"
        else:
            reason = "The reference has no scores"
        return f"{reason}, so nothing is compared. {_scope(scored)}"
    sentences = []
    references = {line["label"]: line for line in lines if line["reference"]}
    for name in dict.fromkeys(line["against"] for line in tests):
        own = [line for line in tests if line["against"] == name]
        sentences += _against_reference(own, references[name], options.alpha)
    return " ".join([*sentences, _scope([*tests, *references.values()])])


def effect_conclusion(tests: Sequence[Line], options: Options) -> str:
    """Tell the largest median difference of the paired tests with its interval, and what r leaves out."""
    known = [line for line in tests if is_known(line["difference_low"])]
    if not known:
        return ""
    largest = max(known, key=lambda line: abs(line["difference"]))
    low, high = largest["difference_low"], largest["difference_high"]
    zero = ", which includes 0" if low <= 0 <= high else ""
    return (
        f"The largest median difference is that of {_quoted(largest['label'])}: {largest['difference']:+.2f} points of "
        f"Dice ({100 * options.confidence:g} % interval {low:+.2f} to {high:+.2f}{zero}), with r = "
        f"{largest['rank_biserial']:+.2f}. r tells how alike the cases are in direction, not by how many points they "
        "differ."
    )


def rank_conclusion(rankings: Sequence[Ranking]) -> str:
    """Tell which rows Friedman's and Nemenyi's tests tell apart, and where Wilcoxon's test says something else."""
    sentences = []
    for ranking in rankings:
        if ranking.test:
            prefix = f"{ranking.data}: " if len(rankings) > 1 else ""
            sentences += [prefix + " ".join([*_order(ranking.test), *_other_than_wilcoxon(ranking, ranking.test)])]
    if not sentences:
        return ""
    return " ".join([*sentences, _scope([line for ranking in rankings for line in ranking.lines])])


def cost_conclusion(lines: Sequence[Line]) -> str:
    """Tell which rows have fewest and most active parameters, and that counts are no times."""
    rows = [line for line in lines if line["role"] == "row" and is_known(line["params"])]
    sentences = []
    if len({line["params"] for line in rows}) > 1:
        least, most = (choose(line["params"] for line in rows) for choose in (min, max))
        fewest, largest = ([line for line in rows if line["params"] == value] for value in (least, most))
        sentences.append(
            f"Of these runs, {_names(fewest)} {'has' if len(fewest) == 1 else 'have'} the fewest active parameters "
            f"({least:.3f} M) and {_names(largest)} the most ({most:.3f} M, {most / least:.1f} times as many)."
        )
    if any(is_known(line[figure]) for line in lines for figure in ("latency_s", "peak_bytes")):
        sentences.append(
            "Parameters and FLOPs are counted exactly. Latency and memory were measured on one machine: another may "
            "order the rows differently."
        )
    else:
        sentences.append("Parameters and FLOPs are counted exactly; they do not say which row is faster.")
    return " ".join(sentences)


def published_conclusion(lines: Sequence[Line], settings: int) -> str:
    """Tell how many published numbers lie in the intervals; `settings` is how many differ from full scale."""
    known = [line["inside"] for line in lines if line["inside"]]
    if not known:
        return ""
    differ = f", and these runs differ from full scale in {_range([settings], 'setting')}" if settings else ""
    return (
        f"The published Dice lies inside the interval in {known.count('yes')} of {_range([len(known)], 'row')}. Inside "
        "does not show that it is reproduced, outside does not show that it is wrong: the interval is about other "
        f"cases alone{differ}."
    )


def settings_conclusion(settings: int) -> str:
    """Tell what follows from the number of settings that differ from full scale."""
    if not settings:
        return ""
    cause = "may come from it" if settings == 1 else "cannot be laid to one of them, or to the method, alone"
    return (
        f"These runs differ from full scale in {_range([settings], 'setting')}, so a difference from published numbers "
        f"{cause}."
    )


def unfinished_conclusion(jobs: int) -> str:
    """Tell what follows from the number of jobs that did not finish."""
    if not jobs:
        return ""
    subject = "1 job has no scores and counts" if jobs == 1 else f"{jobs} jobs have no scores and count"
    return f"{subject} in no number above; {'its row stands' if jobs == 1 else 'their rows stand'} on other jobs alone."


def _against_reference(tests: Sequence[Line], reference: Line, alpha: float) -> list[str]:
    name = _quoted(reference["label"])
    found = [line for line in tests if line["p_holm"] < alpha]
    better = [line for line in found if line["rank_biserial"] > 0]
    worse = [line for line in found if line["rank_biserial"] < 0]
    sentences = []
    parts = [
        f"{_names(own)} {_verb(own, 'score')} {word}" for own, word in ((better, "higher"), (worse, "lower")) if own
    ]
    if parts:
        cases = f"the same {_pairs(found)} cases"
        sentences.append(f"{' and '.join(parts)} than {name} on {cases} (p (Holm) < {alpha:.2g}).")
    unknown = [line for line in tests if line not in found]
    if unknown:
        sentences.append(
            f"Between {_names(unknown)} and {name} no difference was found on {_pairs(unknown)} cases; {NOT_EQUAL}."
        )
    opposite = [line for line in found if (line["dice"] - reference["dice"]) * line["rank_biserial"] < 0]
    if opposite:
        sentences.append(
            f"The mean Dice of {_names(opposite)} points the other way than the test: look at single cases first."
        )
    small = [line for line in found if _within_seeds(line, reference)]
    if small:
        sentences.append(
            f"{_names(small)} {_verb(small, 'differ')} from {name} in mean Dice by no more than two seeds of one of "
            "these rows do, so another training may undo it."
        )
    return sentences


def _within_seeds(line: Line, reference: Line) -> bool:
    """Whether two rows differ by no more than two seeds of one of them do on one fold."""
    spreads = [spread for spread in (line["seed_spread"], reference["seed_spread"]) if is_known(spread)]
    return bool(spreads) and abs(line["dice"] - reference["dice"]) <= max(spreads)


def _order(test: RankTest) -> list[str]:
    count = len(test.mean_ranks)
    if not test.is_significant:
        return [
            f"Over {test.cases} cases no difference between the {count} rows was found (Friedman); {NOT_EQUAL}, and no "
            "pair is compared."
        ]
    groups = test.groups()
    best = [name for name, rank in test.mean_ranks.items() if rank - test.mean_ranks.iloc[0] < 1e-12]
    alike = [name for name in groups[0] if name not in best]
    others = [name for name in test.mean_ranks.index if name not in groups[0]]
    has, is_ = ("has", "is") if len(best) == 1 else ("have", "are")
    agreement = f"Kendall's W is {test.agreement:.2f}, and 1 if all cases rank the rows alike"
    sentences = [f"Over {test.cases} cases the {count} rows differ (Friedman); {agreement}."]
    if len(groups) == 1:
        return [*sentences, f"Nemenyi's test cannot say which: no pair is told apart; {NOT_EQUAL}."]
    sentences.append(f"{_joined(best)} {has} the best mean rank and {is_} told apart from {_joined(others)}.")
    if alike:
        sentences.append(f"From {_joined(alike)} no difference was found; {NOT_EQUAL}.")
    return sentences


def _other_than_wilcoxon(ranking: Ranking, test: RankTest) -> list[str]:
    """Name the rows of which one test finds a difference from the reference and the other does not."""
    tested = [line for line in ranking.lines if is_known(line["p_holm"])]
    apart = {line["label"]: test.differ(line["label"], line["against"]) for line in tested}
    wilcoxon = [line for line in tested if line["p_holm"] < test.alpha and not apart[line["label"]]]
    nemenyi = [line for line in tested if line["p_holm"] >= test.alpha and apart[line["label"]]]
    return [
        f"Of {_names(own)} {one} finds a difference from the reference, {other} does not: {reason}."
        for own, one, other, reason in (
            (wilcoxon, "Wilcoxon's test", "Nemenyi's", "it compares all pairs, and ranks alone"),
            (nemenyi, "Nemenyi's test", "Wilcoxon's", "that one weighs how large the differences are"),
        )
        if own
    ]


def _scope(lines: Sequence[Line]) -> str:
    """Tell what intervals and tests are about: cases, not trainings, with the numbers of seeds and folds."""
    runs = [line for line in lines if line["runs"]]
    seeds, folds = ([int(line[key]) for line in runs] for key in ("seeds", "folds"))
    trained = f"{_range(seeds, 'seed')} and {_range(folds, 'fold')}" + (" a row" if len(runs) > 1 else "")
    unknown = " What another training would give is not known." if max(seeds) == 1 else ""
    return (
        f"Intervals and tests are about other cases for these networks ({trained}): cases are not independent "
        f"trainings.{unknown}"
    )


def _pairs(lines: Sequence[Line]) -> str:
    return _range([int(line["pairs"]) for line in lines])


def _range(numbers: Sequence[int], name: str = "") -> str:
    """Return "3", "1 to 3" or, with a name, "1 to 3 seeds"."""
    low, high = min(numbers), max(numbers)
    text = str(low) if low == high else f"{low} to {high}"
    return f"{text} {name}{'' if high == 1 else 's'}" if name else text


def _names(lines: Sequence[Mapping[str, object]]) -> str:
    return _joined([line["label"] for line in lines])


def _joined(labels: Sequence[object]) -> str:
    names = [_quoted(label) for label in labels]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _quoted(label: object) -> str:
    """Return a label, in quotes if a comma in it could be taken for one between two labels."""
    return f'"{label}"' if "," in str(label) else str(label)


def _verb(subjects: Sequence[object], verb: str) -> str:
    return f"{verb}s" if len(subjects) == 1 else verb
