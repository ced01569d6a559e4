"""Look at predictions: e2enet view RUN_OR_PREDICTIONS [OTHER] [--labels FOLDER] [--images FOLDER] .."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.arguments import renumbering_of
from e2enet.common.console import say
from e2enet.common.errors import exit_on_input_error

DESCRIPTION = """\
Write a viewer of predictions: a folder whose index.html opens from disk, without a server or a network.

It shows scan, prediction, reference, their difference and kept probabilities in three planes and 3D, with a list of
the cases, the worst Dice first. RUN_OR_PREDICTIONS is a run folder (its validation cases), a folder of its
predictions (RUN/test), or any folder of label images, such as the output of `e2enet predict` or of nnU-Net. With a
second one, the cases that both have stand side by side.
"""
EPILOG = """\
Of a run, scans and references are those of its dataset. Other predictions need --images, or --labels in a folder
called labelsTr or labelsTs with imagesTr or imagesTs beside it. Class names come from a dataset.json there, or beside
the predictions. References are renumbered as the run's data.label_map says, or --label-map.
A scan of more than 32 MiB is cropped to its labels, if it has any, with a margin of 20 mm and stored as 8 bit;
--whole keeps it.
Exit code: 0 written, 2 wrong input (nothing is written).

Examples:
  e2enet view runs/hippocampus
  e2enet view predictions --labels data/Task04_Hippocampus/labelsTs --output viewer
  e2enet view runs/first runs/second
"""


@exit_on_input_error("stopped; no viewer is written")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the viewer of the predictions named on the command line."""
    given = _parser().parse_args(arguments)
    if given.other is not None and given.other.resolve() == given.predictions.resolve():
        _parser().error(f"{given.other}: given twice; expected other predictions of the same cases")
    # These import nibabel and torch; --help does not wait for them.
    from e2enet.view.find import find_entries
    from e2enet.view.write import require_viewer_folder, write_viewer

    sources = [given.predictions, *([] if given.other is None else [given.other])]
    if given.output is not None:
        require_viewer_folder(given.output)
    found = find_entries(sources, given.images, given.labels, dict(given.label_map) or None)
    for warning in found.warnings:
        say(f"warning: {warning}", style="yellow")
    folder = given.output or found.folder / "viewer"
    title = " and ".join(dict.fromkeys(pane.name for pane in found.entries[0].panes))
    say(write_viewer(folder, title, found.entries, whole=given.whole).describe())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2enet view",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", metavar="RUN_OR_PREDICTIONS", type=Path, help="a run folder or a folder of predictions")
    add("other", metavar="OTHER", type=Path, nargs="?", help="a second one, to compare case by case")
    add("--labels", metavar="FOLDER", type=Path, help="references, named like the predictions")
    add(
        "--label-map",
        metavar="VALUE=LABEL",
        type=renumbering_of,
        action="append",
        default=[],
        help="a value of the references is this label, e.g. 4=3 for BraTS (may be repeated; default: as in the run)",
    )
    add("--images", metavar="FOLDER", type=Path, help="scans, named like the predictions (case_0000 .. for channels)")
    add("--output", metavar="FOLDER", type=Path, help="where to write (default: viewer in RUN_OR_PREDICTIONS)")
    add("--whole", action="store_true", help="keep large scans whole and with their own values")
    return parser


if __name__ == "__main__":
    main()
