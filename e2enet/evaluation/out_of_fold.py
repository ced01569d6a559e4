"""Score each case by the fold that did not train on it: python -m e2enet.evaluation.out_of_fold SWEEP_FOLDER .."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2enet.common.console import console, say
from e2enet.common.errors import exit_on_input_error
from e2enet.common.files import atomic_path, write_csv, write_json
from e2enet.evaluation.choose_components import (
    ComponentDecision,
    choice_content,
    choice_table,
    choose_classes,
    write_postprocessed,
)
from e2enet.evaluation.collect import OutOfFold, collect_cases
from e2enet.evaluation.folder import score_files, write_scores
from e2enet.evaluation.scores import scores_table
from e2enet.inference.folds import RunSelector, find_folds
from e2enet.inference.largest_component import OUT_OF_FOLD, POSTPROCESSING_FILE

DESCRIPTION = """\
Collects the validation predictions of every fold of one configuration: each case once, predicted by the network
that was not trained on it. Scores them as e2enet evaluate does, and with --postprocessing chooses, class
by class, whether only the largest component is kept: where that raises the class's mean Dice over these cases.
"""
EPILOG = """\
Writes to SWEEP_FOLDER/out_of_fold/CONFIGURATION:
  cases.csv             a row per case: fold, prediction, reference
  scores.csv, summary.json
  postprocessing.json   the choice, with Dice before and after; e2enet predict applies it from there
  postprocessed/        the predictions with the choice applied, and their two score files

Exit code: 0 scored, 2 wrong input (every problem is listed, nothing is written).

Examples:
  python -m e2enet.evaluation.out_of_fold runs/folds
  python -m e2enet.evaluation.out_of_fold runs/sparsity --row s80 --seed 0 --postprocessing
"""
POSTPROCESSED = "postprocessed"


def score_out_of_fold(cases: OutOfFold, output: Path) -> dict[str, Any]:
    """Score the collected predictions, write cases.csv, scores.csv and summary.json to `output`; return the summary.

    Raises InputError for predictions that cannot be compared with their references.
    """
    scores, summary = score_files(cases.pairs, cases.scheme, **cases.scoring)
    rows = [
        {"case": case, "fold": cases.folds[case], "prediction": prediction, "reference": reference}
        for case, (prediction, reference) in cases.pairs.items()
    ]
    write_csv(output / "cases.csv", rows, ("case", "fold", "prediction", "reference"))
    write_scores(output, scores, summary)
    return summary


def choose_postprocessing(cases: OutOfFold, output: Path) -> tuple[list[ComponentDecision], dict[str, Any] | None]:
    """Choose the classes whose largest component is kept; return the decision per class and the new summary.

    If a class is chosen, postprocessed/ is written to `output` with the processed cases and their scores; otherwise
    the summary is None. postprocessing.json is written last.
    """
    (output / POSTPROCESSING_FILE).unlink(missing_ok=True)
    shutil.rmtree(output / POSTPROCESSED, ignore_errors=True)
    choices = choose_classes(cases.pairs, cases.scheme, label_map=cases.scoring["label_map"])
    content = choice_content(choices)
    summary = None
    chosen = [choice.label for choice in choices if choice.keep_largest]
    if chosen:
        with atomic_path(output / POSTPROCESSED) as folder:
            folder.mkdir()
            pairs = {}
            for case, (prediction, reference) in cases.pairs.items():
                write_postprocessed(prediction, folder / prediction.name, chosen)
                pairs[case] = (folder / prediction.name, reference)
            scores, summary = score_files(pairs, cases.scheme, **cases.scoring)
            write_scores(folder, scores, summary)
    write_json(output / POSTPROCESSING_FILE, {"version": 1, **cases.origin, **content})
    return choices, summary


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score the sweep named on the command line and print the tables."""
    options = _parser().parse_args(arguments)
    choice = RunSelector(options.experiment, options.row, options.seed)
    folds = find_folds(options.folder, choice, allow_missing=options.allow_missing_folds)
    for line in folds.left_out:
        say(f"warning: without {line}")
    cases = collect_cases(folds, data_root=options.data)
    output = options.output or folds.sweep / OUT_OF_FOLD / folds.configuration.folder_name
    summary = score_out_of_fold(cases, output)
    console.print(scores_table(summary, title=f"Out of fold, {folds.configuration.describe()}"))
    if options.postprocessing:
        choices, improved = choose_postprocessing(cases, output)
        console.print(choice_table(choices))
        if improved is None:
            say("no class gains by keeping its largest component alone: predictions stay as they are")
        else:
            console.print(scores_table(improved, title="Postprocessed"))
    say(f"written: {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m e2enet.evaluation.out_of_fold",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="SWEEP_FOLDER", type=Path, help="a sweep, or a folder of runs of the folds")
    add("--experiment", metavar="NAME", help="where the sweep holds several")
    add("--row", metavar="NAME", help="where the sweep holds several")
    add("--seed", metavar="N", type=int, help="where the sweep holds several")
    add("--output", metavar="DIR", type=Path, help="another folder for the results")
    add("--postprocessing", action="store_true", help="choose the classes whose largest component is kept")
    add("--allow-missing-folds", action="store_true", help="score the folds that are finished")
    add("--data", metavar="DIR", type=Path, help="parent folder of the raw dataset (default: the runs' paths.data)")
    return parser


if __name__ == "__main__":
    main()
