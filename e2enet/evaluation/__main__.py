"""Score predictions: e2enet evaluate PREDICTIONS LABELS [--output DIR] [--nsd-tolerance MM] .."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from e2enet.common.arguments import label_of, renumbering_of
from e2enet.common.console import console, say
from e2enet.common.errors import exit_on_input_error
from e2enet.data.formats.grid import Unit
from e2enet.evaluation.folder import score_folder, write_scores
from e2enet.evaluation.pairing import DEFAULT_NAMES
from e2enet.evaluation.scores import scores_table

DESCRIPTION = """\
Dice, normalised surface Dice (NSD) and 95th-percentile Hausdorff distance (HD95) of predicted label images
against reference ones, per case and class.

Files are paired by name (case.nii.gz with case.nii.gz or case.nrrd: any format that is read, and .mgz, .mgh, .mnc and
.hdr) and compared on their own grid: one shape, affines apart by a tenth of a voxel at most. Every reference needs a
prediction.
Class names come from a dataset.json in LABELS or in the folder above it, else from the references' values.
"""
EPILOG = """\
A class that is missing in both images of a case is left out and counted as absent. Missing in one of them
it scores Dice 0, NSD 0 and the image's diagonal in mm as HD95, and is counted as missed or invented.

Writes scores.csv (a row per case and class) and summary.json (means per class, and their mean).
Exit code: 0 scored, 2 wrong input (every problem is listed, nothing is written).

Examples:
  e2enet evaluate predictions/ data/Task04_Hippocampus/labelsTs --nsd-tolerance 2
  e2enet evaluate predictions/ data/BraTS2021 --label-names "*/*_seg" --label-map 4=3 \\
      --region "whole tumour=1,2,3" --region "tumour core=1,3"
"""


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score the folders named on the command line, write the two files and print the table."""
    options = _parser().parse_args(arguments)
    scores, summary, warnings = score_folder(
        options.predictions,
        options.labels,
        nsd_tolerance=options.nsd_tolerance,
        label_map=dict(options.label_map),
        regions=dict(options.region),
        ignore=options.ignore,
        unit=options.spacing_unit,
        prediction_names=options.prediction_names,
        label_names=options.label_names,
    )
    scores_path, summary_path = write_scores(options.output or options.predictions, scores, summary)
    for warning in warnings:
        say(f"warning: {warning}", style="yellow")
    console.print(scores_table(summary))
    message = f"NSD tolerance {options.nsd_tolerance:g} mm. Written: {scores_path}, {summary_path}"
    say(message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2enet evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", metavar="PREDICTIONS", type=Path, help="folder of predicted label images")
    add("labels", metavar="LABELS", type=Path, help="folder of reference label images")
    add("--output", metavar="FOLDER", type=Path, help="where the two files are written (default: PREDICTIONS)")
    add(
        "--nsd-tolerance",
        metavar="MM",
        type=float,
        default=1.0,
        help="distance in mm up to which surfaces count as agreeing in NSD (default: %(default)s)",
    )
    add(
        "--label-map",
        metavar="VALUE=LABEL",
        type=renumbering_of,
        action="append",
        default=[],
        help="a value of the references is this label, e.g. 4=3 for BraTS (may be repeated)",
    )
    add(
        "--region",
        metavar="NAME=LABELS",
        type=_region,
        action="append",
        default=[],
        help='classes united and scored beside them, e.g. "whole tumour=1,2,3" (may be repeated)',
    )
    add(
        "--ignore",
        metavar="LABEL",
        type=label_of,
        help="the references' label of voxels to leave out of every score; a label of dataset.json called ignore is",
    )
    add(
        "--spacing-unit",
        choices=get_args(Unit),
        help="unit of the lengths in the references' files (default: as each header says)",
    )
    names = "files in {}, without ending and with * for the case, e.g. {} (default: %(default)s)"
    add(
        "--prediction-names",
        metavar="NAME",
        default=DEFAULT_NAMES,
        help=names.format("PREDICTIONS", '"img*"'),
    )
    add("--label-names", metavar="NAME", default=DEFAULT_NAMES, help=names.format("LABELS", '"label*" or "*/*_seg"'))
    return parser


def _region(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, labels = text.rpartition("=")
    if not name.strip():
        raise argparse.ArgumentTypeError(f'{text!r}: NAME=LABELS expected, e.g. "whole tumour=1,2,3"')
    return name.strip(), tuple(label_of(label) for label in labels.split(","))


if __name__ == "__main__":
    main()
