"""The interface of all dataset layouts. The files beside this one implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem


class Layout(ABC):
    """How a dataset is stored in its folder.

    To use your own class, name it in `data.layout._target_`. It is built from the other keys of that section. They
    must be plain values, since a checkpoint stores them for prediction. Only `scan` is required.
    """

    @abstractmethod
    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """Read the dataset without its voxels, and append errors and warnings to `problems`.

        Args:
            folder: The dataset's folder.
            problems: List to append to; see `formats.problems`.
            table: The config's label settings. `formats.labels.resolve_labels` turns them into a scheme. Then
                `formats.dataset.build_raw_dataset` runs the checks that every layout needs and builds the dataset.

        Raises:
            InputError: nothing can be read.
        """

    def find_cases(self, source: Path, problems: list[Problem]) -> list[Case] | None:
        """Return the cases to predict in `source`, usually a folder; None if it does not follow the layout.

        The default returns every case that `scan` finds. Prediction needs no labels, so their problems are dropped.
        """
        found: list[Problem] = []
        try:
            dataset = self.scan(source, found, LabelTable())
        except InputError:
            return None
        cases = [*dataset.training, *dataset.validation, *dataset.test]
        labels = {str(case.label) for case in cases}
        problems += [one for one in found if one.case is not None and one.file not in labels]
        return list({case.id: Case(case.id, case.images) for case in cases}.values())

    @property
    def prepared_suffix(self) -> str:
        """Suffix that separates the prepared cases of layouts that share a folder (AMOS: CT and MRI)."""
        return ""

    def folder_name(self, name: str) -> str:
        """The dataset's folder below `paths.data`, for `data.name`."""
        return name

    def create(self, folder: Path) -> None:
        """Write the raw dataset if the layout can generate it. The default does nothing."""
        return

    @property
    def hint(self) -> str:
        """Advice to add to the error for a missing dataset folder."""
        return "paths.data is its parent, data.name its name"
