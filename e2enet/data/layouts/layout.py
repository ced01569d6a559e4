"""What every layout of a dataset can be asked; the classes beside this one are those that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem


class Layout(ABC):
    """How a dataset lies in its folder.

    A class of one's own is named by `data.layout._target_` and built from the other keys of that section, plain values,
    which a checkpoint keeps for prediction. Only `scan` must be there.
    """

    @abstractmethod
    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """Read what can be read, before any voxel, and add to `problems` what is wrong.

        Args:
            folder: The dataset's.
            problems: Takes errors and warnings; see `formats.problems`.
            table: What the config says of the labels; `formats.labels.resolve_labels` makes a scheme of it, and
                `formats.dataset.build_raw_dataset` the dataset, after the checks that every layout needs.

        Raises:
            InputError: there is nothing to read at all.
        """

    def find_cases(self, source: Path, problems: list[Problem]) -> list[Case] | None:
        """The cases to predict where `source` is laid out so, a folder as a rule; None where it is not.

        Here: every case of a folder that can be scanned. Labels are not needed, so that nothing is said of theirs.
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
        """Tells the prepared cases of layouts apart that read one folder differently (AMOS: CT and MRI)."""
        return ""

    def folder_name(self, name: str) -> str:
        """The dataset's folder below `paths.data`, for `data.name`."""
        return name

    def create(self, folder: Path) -> None:
        """Make the raw dataset where that is possible; nothing for data that a user brings."""
        return

    @property
    def hint(self) -> str:
        """What may help where there is no such folder."""
        return "paths.data is its parent, data.name its name"
