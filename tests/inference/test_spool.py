"""Probabilities spooled plane by plane give the file that NumPy would write, and no other file remains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from e2enet.data.formats.volume import Geometry, to_native
from e2enet.inference.spool import spool_probabilities

# 5 x 4 x 3 voxels. The file's axes point left, up and to the front; the second one is depth.
AFFINE = np.array([[-1.0, 0, 0, 7], [0, 0, 1.5, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
GEOMETRY = Geometry((5, 4, 3), AFFINE, depth_axis=2)


def spool(folder: Path) -> np.ndarray:
    """Write random probabilities (K, D, H, W) through a spool into folder/a.npz, and return them."""
    probabilities = np.random.default_rng(0).random((3, *GEOMETRY.frame_shape), dtype=np.float32)
    with spool_probabilities(folder) as spooled:
        for plane in probabilities.transpose(1, 0, 2, 3):
            spooled.add(plane)
        spooled.write(folder / "a.npz", GEOMETRY)
    return probabilities


def test_the_file_is_that_of_numpy(tmp_path: Path) -> None:
    probabilities = spool(tmp_path / "new")
    expected = to_native(probabilities.astype(np.float16), GEOMETRY)
    np.savez_compressed(tmp_path / "b.npz", probabilities=expected)
    with np.load(tmp_path / "new" / "a.npz") as found, np.load(tmp_path / "b.npz") as other:
        assert found.files == other.files == ["probabilities"]
        assert found["probabilities"].dtype == np.float16 and found["probabilities"].shape == (3, 5, 4, 3)
        np.testing.assert_array_equal(found["probabilities"], other["probabilities"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]


def test_nothing_is_left_of_a_case_that_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with spool_probabilities(tmp_path) as spooled:
            spooled.add(np.zeros((3, 3, 5), dtype=np.float32))
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        fail()
    with spool_probabilities(tmp_path) as spooled:
        spooled.add(np.zeros((3, 3, 5), dtype=np.float32))
        with pytest.raises(ValueError, match="does not lie on the grid"):  # one plane of four
            spooled.write(tmp_path / "a.npz", GEOMETRY)
    assert list(tmp_path.iterdir()) == []
