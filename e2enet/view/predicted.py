"""The viewer of what `predict` just made: viewer=true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from e2enet.data.formats.naming import Case
from e2enet.inference.checkpoint import LoadedModel
from e2enet.view.case_script import Entry, Pane
from e2enet.view.find import probabilities_of
from e2enet.view.meaning import Meaning
from e2enet.view.write import write_viewer

FOLDER = "viewer"


def view_predicted(output: Path, model: LoadedModel, predictions: Mapping[Path, Case]) -> str:
    """Write the viewer of predictions into output/viewer; return a line about it for the console.

    Args:
        output: The folder of the predictions.
        model: The model that made them, or one of several: they share their labels.
        predictions: Label image -> its case.
    """
    meaning = Meaning(model.scheme, model.label_map, model.regions, model.channels)
    name = output.resolve().name
    entries = [
        Entry(case, (Pane(name, path, probabilities_of(path, case.id)),), meaning) for path, case in predictions.items()
    ]
    return f"viewer: {write_viewer(output / FOLDER, name, entries).describe()}"
