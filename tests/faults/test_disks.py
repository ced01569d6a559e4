"""Full, read-only or unreadable disks are reported, leave no partly written file, and do not stop the other cases.

The full disk is the kernel's /dev/full. Refusals that root would not get are injected.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common import files
from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, read_json, require_writable, write_json
from e2enet.data.layouts.prediction import find_cases
from e2enet.system.locks import claimed_folder
from e2enet.training.checkpoints import AtomicCheckpointIO

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes writes to a path fail as on a full disk."""
    monkeypatch.setattr(files.uuid, "uuid4", lambda: uuid.UUID(int=0))

    def full(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".tmp-00000000-{path.name}").symlink_to("/dev/full")

    return full


def deny(monkeypatch: pytest.MonkeyPatch, method: str, place: Path, code: int = errno.EACCES) -> None:
    """Let a method of Path fail for `place` and everything below it, as the system would."""
    original = getattr(Path, method)

    def failing(self: Path, *args: Any, **more: Any) -> Any:
        if self == place or place in self.parents:
            raise OSError(code, os.strerror(code), str(self))
        return original(self, *args, **more)

    monkeypatch.setattr(Path, method, failing)


@needs_dev_full
@pytest.mark.parametrize("ending", [".nii.gz", ".npz"])
def test_a_disk_that_fills_up_during_prediction(bench: Any, fill: Any, ending: str) -> None:
    bench.write(bench.scans / "second.nii.gz", bench.voxels())
    path = bench.out / f"good{ending}"
    fill(path)
    failures = bench.predict(probabilities=True)
    assert failures == {
        "good": f"{path}: cannot be written (No space left on device); free space and the permission to write expected"
    }
    files_of_good = [name for name in bench.results() if "good" in name]
    assert files_of_good == [".predicted/good.json", *(["good.npz"] if ending == ".nii.gz" else [])]
    assert {"second.nii.gz", "second.npz"} < set(bench.results())
    assert bench.predict(probabilities=True) == {} and "good.nii.gz" in bench.results()  # space is free again


@needs_dev_full
def test_a_disk_that_fills_up_during_preparation(bench: Any, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.data()
    monkeypatch.setattr("e2enet.system.locks.remove_temporaries", lambda folder: None)  # keeps the link to /dev/full
    (image,) = bench.prepared.rglob("b.image.npy")
    for path in image.parent.glob("b.*"):
        path.unlink()
    fill(image)
    assert f"case b: {image}: cannot be written (No space left on device); free space" in bench.refusal()
    assert not list(image.parent.glob("b.*")) and not list(bench.prepared.rglob(".tmp-*"))
    bench.data()
    assert image.is_file()


@needs_dev_full
def test_a_file_that_was_there_stays_when_the_disk_is_full(tmp_path: Path, fill: Any) -> None:
    write_json(tmp_path / "a.json", [1])
    fill(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json: cannot be written \(No space left on device\)"):
        write_json(tmp_path / "a.json", [2] * 10_000)
    assert read_json(tmp_path / "a.json") == [1] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_output_that_cannot_be_written_is_told_before_predicting(
    bench: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    deny(monkeypatch, "write_bytes", bench.out, code)
    monkeypatch.setattr("e2enet.inference.predictor.predict_case", lambda *a, **k: pytest.fail("predicted in vain"))
    with pytest.raises(InputError) as caught:
        bench.predict()
    reason = f"cannot be written ({os.strerror(code)}); free space and the permission to write expected"
    assert str(caught.value) == f"{bench.out}: {reason}"
    assert bench.results() == []


def test_prepared_cases_that_cannot_be_written(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "mkdir", bench.prepared, errno.EROFS)
    assert "cannot be written (Read-only file system); free space and the permission" in bench.refusal()
    assert not bench.prepared.exists()


def test_a_run_folder_that_cannot_be_written(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "mkdir", bench.root / "runs", errno.EROFS)
    with pytest.raises(InputError) as caught, claimed_folder(bench.root / "runs" / "mine"):
        pytest.fail("held")
    assert str(caught.value).startswith(f"{bench.root / 'runs' / 'mine'}/")
    assert "cannot be written (Read-only file system); free space and the permission to write expected" in str(
        caught.value
    )


def test_what_is_read_meanwhile_is_not_said_to_be_unwritable(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"file.*: cannot be written \((File exists|Not a directory)\)"):
            require_writable(place)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_of_scans_that_cannot_be_read(bench: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    deny(monkeypatch, "iterdir", bench.scans, code)
    expected = f"{bench.scans}: cannot be read ({os.strerror(code)}); a readable file or folder expected"
    with pytest.raises(InputError) as caught:
        find_cases(bench.scans, ["MRI"])
    assert str(caught.value) == expected
    with pytest.raises(InputError):
        bench.predict()
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("method", "place"), [("iterdir", "imagesTr"), ("read_bytes", "dataset.json"), ("stat", "labelsTr")]
)
def test_a_dataset_that_cannot_be_read(bench: Any, monkeypatch: pytest.MonkeyPatch, method: str, place: str) -> None:
    deny(monkeypatch, method, bench.raw / place)
    found = bench.refusal()
    assert f"{bench.raw / place}" in found and "cannot be read (Permission denied)" in found, found
    assert bench.leftovers() == []


def test_a_scan_that_cannot_be_read(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = bench.write(bench.scans / "bad.nii.gz", bench.voxels())
    deny(monkeypatch, "open", bad)  # whether opened for its hash or its voxels
    monkeypatch.setattr("gzip.open", _denying(bad))
    failures = bench.predict()
    assert list(failures) == ["bad"] and "Permission denied" in failures["bad"] and str(bad) in failures["bad"]
    assert bench.results() == [".predicted/good.json", "good.nii.gz"]


def _denying(bad: Path) -> Any:
    import gzip

    original = gzip.open

    def opening(path: Any, *args: Any, **more: Any) -> Any:
        if str(path) == str(bad):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **more)

    return opening


def test_a_disk_that_fills_up_at_any_byte_of_a_checkpoint(tmp_path: Path) -> None:
    """A file size limit stops the write at any byte: the error is reported and the old checkpoint is kept."""
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    content = {"state_dict": {f"layer{index}": torch.full((300,), float(index)) for index in range(4)}}
    writer.save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()
    writer.save_checkpoint(content, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in [*range(0, whole, whole // 40), whole - 1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(InputError, match=r"last\.ckpt: cannot be written \(File too large\); free space"):
                writer.save_checkpoint(content, path)
            assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
                path.name,
                "whole.ckpt",
            ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
