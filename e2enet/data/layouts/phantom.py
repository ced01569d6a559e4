"""The phantom, which is written on first use, as a layout: the Decathlon's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from e2enet.data.layouts.described import MSDLayout
from e2enet.data.synthetic.phantom import phantom_folder_name, phantom_settings, write_phantom


class PhantomLayout(MSDLayout):
    """The phantom; the parameters are those of `write_phantom`.

    The folder's name carries their hash, so that changed parameters give another folder. `phantom_seed` decides the
    phantom; `seed`, as everywhere, the samples drawn from it.

    Raises:
        InputError: impossible parameters.
    """

    def __init__(
        self,
        num_train: int = 20,
        num_test: int = 4,
        shape: Sequence[int] = (64, 64, 24),
        spacing: Sequence[float] = (1.0, 1.0, 3.0),
        phantom_seed: int = 0,
    ) -> None:
        self.settings = phantom_settings(
            num_train=num_train, num_test=num_test, shape=shape, spacing=spacing, seed=phantom_seed
        )

    def folder_name(self, name: str) -> str:
        """The name, and the hash of the parameters."""
        return phantom_folder_name(name, self.settings)

    def create(self, folder: Path) -> None:
        """Write the phantom unless it is there."""
        write_phantom(folder, **{key: value for key, value in self.settings.items() if key != "version"})

    @property
    def hint(self) -> str:
        """Who makes the folder."""
        return "train.py or e2enet.data.prepare writes it"
