"""The layout of the phantom, which is written on first use in the Decathlon's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from e2enet.data.layouts.described import MSDLayout
from e2enet.data.synthetic.phantom import phantom_folder_name, phantom_settings, write_phantom


class PhantomLayout(MSDLayout):
    """The phantom, with the parameters of `write_phantom`.

    The folder's name holds a hash of the parameters, so changed parameters give another folder. `phantom_seed` seeds
    the phantom itself. The config's `seed` seeds the samples drawn from it, as for every dataset.

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
        """Return the name with the hash of the parameters appended."""
        return phantom_folder_name(name, self.settings)

    def create(self, folder: Path) -> None:
        """Write the phantom unless it exists."""
        write_phantom(folder, **{key: value for key, value in self.settings.items() if key != "version"})

    @property
    def hint(self) -> str:
        """The commands that write the folder."""
        return "e2enet train or e2enet prepare writes it"
