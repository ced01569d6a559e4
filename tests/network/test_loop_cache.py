"""Compiled loops are loaded from disk while the code is unchanged, and never for other code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import e2enet
from e2enet.network import loop_cache
from e2enet.network.compiled import compiled

CONVOLVES = """
import numpy as np, torch, torch.nn.functional as F
from e2enet.network.engine import inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.sparse_layers import Convolution
from e2enet.network.engine.lazy_volumes import LazyVolumes
torch.manual_seed(0)
x, w = torch.randn(2, 4, 9, 11), torch.randn(3, 2, 1, 3, 3)
kernels = ActiveKernels.of_convolution(np.ones((3, 2), bool), np.zeros(2, np.int64), (1, 3, 3))
layer = Convolution(kernels, kernels.gather_weights(w.numpy()), (1, 1, 1), (1, 1), None)
found = layer([LazyVolumes.of(np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())[None])]).stacked()
expected = F.conv3d(x[None], w, padding=(0, 1, 1))[0].permute(0, 2, 3, 1)
print(inner_loops.ROWS, inner_loops.COLUMNS, float((torch.from_numpy(found) - expected).abs().max()))
"""


@pytest.mark.slow
def test_a_constant_of_another_file_is_not_taken_from_a_warm_cache(tmp_path: Path) -> None:
    package = tmp_path / "e2enet"
    shutil.copytree(Path(e2enet.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def convolve() -> tuple[int, int, float]:
        run = [sys.executable, "-c", CONVOLVES]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        rows, columns, difference = done.stdout.split()
        return int(rows), int(columns), float(difference)

    rows, columns, difference = convolve()
    assert (rows, columns) == (4, 4) and difference < 1e-5
    (folder,) = (package / "network" / "__pycache__").glob("loops-*")
    assert list(folder.rglob("loops.convolve-*.nbc"))
    file = package / "network" / "engine" / "inner_loops.py"
    text, times = file.read_text(), file.stat()
    file.write_text(text.replace("ROWS, COLUMNS = 4, 4", "ROWS, COLUMNS = 2, 4"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # same date and size as before
    rows, columns, difference = convolve()
    assert (rows, columns) == (2, 4) and difference < 1e-5
    assert len(list(folder.parent.glob("loops-*"))) == 2


def test_the_key_follows_the_code_that_python_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    package = tmp_path / "package"
    file, deeper = package / "constants.py", package / "inner" / "loops.py"
    deeper.parent.mkdir(parents=True)
    (deeper.parent / "__init__.py").write_text("")

    def key(text: str, inside: str = "KINDS = {'a', 'b', 'c'}\n", seconds: int = 1_000_000_000) -> str:
        for path, content in ((file, text), (deeper, inside)):
            path.write_text(content)
            os.utime(path, (seconds, seconds))
        return loop_cache.code_key(package, "package")

    first = key("ROWS = 4\n")
    assert len(first) == 16
    assert key("ROWS = 8\n") == first  # same date and size: Python keeps its old bytecode
    second = key("ROWS = 8\n", seconds=1_000_000_001)
    assert second != first
    assert key("# as before\nROWS = 8\n", seconds=1_000_000_002) == second
    assert key("ROWS = 8\n", "KINDS = {'a', 'b'}\n", 1_000_000_003) != second
    assert key("ROWS = 8\nMORE = 1\n", seconds=1_000_000_004) != second
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert key("ROWS = 8\n", seconds=1_000_000_005) != second


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-in for the code's folder. The user's cache folder is beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(loop_cache, "ROOM", tmp_path / "room")
    monkeypatch.setattr(loop_cache, "code_key", lambda folder, package: "0123")
    monkeypatch.setattr(loop_cache, "_signature", lambda: loop_cache._IMPORTED)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    for name in ("cache_folder", "loops_key"):
        monkeypatch.setattr(loop_cache, name, getattr(loop_cache, name).__wrapped__)  # not cached
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


def doubled() -> list[str]:
    """Compile and run a loop; return the suffixes of its cache files."""

    @compiled
    def double(x):
        return x * 2

    assert np.array_equal(double(np.arange(3.0)), [0, 2, 4])
    folder = Path(double._cache.cache_path) if hasattr(double._cache, "_impl") else None
    return sorted(path.suffix for path in folder.iterdir()) if folder else []


def test_what_cannot_be_kept_beside_the_code_goes_to_the_users_folder(room: Path, tmp_path: Path) -> None:
    assert loop_cache.cache_folder() == room / "__pycache__" / "loops-0123"
    assert doubled() == [".nbc", ".nbi"] and list((room / "__pycache__").rglob("*.nbc"))
    shutil.rmtree(room / "__pycache__")
    (room / "__pycache__").write_text("")  # no folder can be made there, even by root
    assert loop_cache.cache_folder() == tmp_path / "user" / "e2enet" / "loops-0123"
    assert doubled() == [".nbc", ".nbi"]
    shutil.rmtree(tmp_path / "user")
    (tmp_path / "user").write_text("")
    assert loop_cache.cache_folder() is None
    assert doubled() == []
    assert numba.config.CACHE_DIR == ""


def test_a_folder_that_the_user_names_comes_first(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    assert loop_cache.cache_folder() == tmp_path / "named" / "loops-0123"
    assert str(tmp_path / "named") == numba.config.CACHE_DIR


def test_nothing_is_kept_when_files_have_changed_since_they_were_imported(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_cache, "_signature", lambda: [("loops.py", 1, 1, 1)])
    assert doubled() == [] and not (room / "__pycache__").exists()


def test_folders_of_the_last_states_stay(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        monkeypatch.setattr(loop_cache, "code_key", lambda folder, package, number=number: f"{number}")
        folder = loop_cache.cache_folder()
        assert folder is not None
        os.utime(folder, (number, number))
    assert sorted(path.name for path in (room / "__pycache__").iterdir()) == [f"loops-{n}" for n in (2, 3, 4, 5)]
