"""Score predictions: python -m e2enet.evaluation PREDICTIONS LABELS [--output DIR] [--nsd-tolerance MM]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.console import console
from e2enet.common.errors import exit_on_input_error
from e2enet.evaluation.folder import score_folder, write_scores
from e2enet.evaluation.scores import scores_table

DESCRIPTION = """\
Dice, normalised surface Dice (NSD) and 95th-percentile Hausdorff distance (HD95) of predicted label images
against reference ones, per case and class.

Files are paired by name (case.nii.gz with case.nii.gz; .nii, .mgz, .mgh, .mnc and .hdr work too) and
compared on their own grid: shape and affine must agree within 0.001 mm. Every reference needs a prediction.
Class names come from a dataset.json in LABELS or in the folder above it, else from the references' values.
"""
EPILOG = """\
A class that is missing in both images of a case is left out and counted as absent. Missing in one of them
it scores Dice 0, NSD 0 and the image's diagonal in mm as HD95, and is counted as missed or invented.

Writes scores.csv (a row per case and class) and summary.json (means per class, and their mean).
Exit code: 0 scored, 2 wrong input (every problem is listed, nothing is written).

Example: python -m e2enet.evaluation predictions/ data/Task04_Hippocampus/labelsTs --nsd-tolerance 2
"""


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score the folders named on the command line, write the two files and print the table."""
    options = _parser().parse_args(arguments)
    scores, summary, warnings = score_folder(options.predictions, options.labels, nsd_tolerance=options.nsd_tolerance)
    scores_path, summary_path = write_scores(options.output or options.predictions, scores, summary)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(scores_table(summary))
    message = f"NSD tolerance {options.nsd_tolerance:g} mm. Written: {scores_path}, {summary_path}"
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m e2enet.evaluation",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of predicted label images")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="folder of reference label images")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="where the two files are written (default: PREDICTIONS)"
    )
    parser.add_argument(
        "--nsd-tolerance",
        metavar="MM",
        type=float,
        default=1.0,
        help="distance in mm up to which surfaces count as agreeing in NSD (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
