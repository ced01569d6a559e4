"""What the labels of predictions and references mean: their names, how references are renumbered, the regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.description import read_class_names
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.scheme import LabelScheme
from e2enet.evaluation.images import read_label_image


@dataclass(frozen=True)
class Meaning:
    """What labels and channels mean.

    Attributes:
        scheme: Names, regions that a network learned, ignore label; numbered as in predictions.
        label_map: Value in the references' files -> label.
        regions: Name -> labels united, scored beside what was learned.
        channels: Names of the images' channels; numbers where they are not known.
    """

    scheme: LabelScheme
    label_map: Mapping[int, int] = field(default_factory=dict)
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    channels: Sequence[str] = ()

    @classmethod
    def of_dataset(cls, dataset: RawDataset) -> Meaning:
        """Return what a run's predictions and the references of its dataset mean."""
        return cls(dataset.scheme, dataset.label_map, dataset.regions, dataset.channels)


def resolve_meaning(
    table: LabelTable, labels: Path | None, references: Sequence[Path], folder: Path, predictions: Sequence[Path]
) -> Meaning:
    """Name labels whose dataset is not at hand: by a dataset.json, or by their values in the files.

    Args:
        table: Settings of the run that predicted, as far as they are known.
        labels: Folder of the references, if there is one. A dataset.json there or above it is renumbered like them.
        references: Its files.
        folder: Folder of the predictions. A dataset.json there or above it numbers the labels as they do.
        predictions: Its files.
    """
    # A scheme of background alone: neither a dataset.json nor the settings have names.
    scheme = resolve_labels(None if labels is None else read_class_names(labels), table, [])
    if len(scheme.file_names) < 2:
        named = read_class_names(folder)
        scheme = named or (_values(references, table.label_map) if references else _values(predictions, {}))
    return Meaning(scheme, table.label_map, table.scored_regions)


def _values(files: Sequence[Path], label_map: Mapping[int, int]) -> LabelScheme:
    """Return the labels in files, each called by its number."""
    values = {value for path in files for value in read_label_image(path, label_map).values}
    return LabelScheme({0: "background", **{value: str(value) for value in sorted(values - {0})}})
