"""predict.py and the evaluation skip no scan silently: ignored files are reported, unreadable ones fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.evaluation import score_folder
from e2enet.evaluation.pairing import ENDINGS


def link(path: Path) -> Path:
    path.symlink_to("/nowhere/x.nii.gz")
    return path


def test_a_dead_link_fails_and_the_others_go_on(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write(bench.scans / "more.nii", bench.voxels())
    bench.write(bench.scans / "lost.nii.gz", bench.voxels())
    assert bench.predict() == {}
    (bench.scans / "lost.nii.gz").unlink()
    dead = link(bench.scans / "lost.nii.gz")
    reason = f"case lost: {dead}: a link whose target /nowhere/x.nii.gz is not there"
    assert bench.predict() == {"lost": reason}  # even if an earlier scan of this name has a result
    shutil.rmtree(bench.out)
    assert bench.predict() == {"lost": reason}
    assert sorted(path.name for path in bench.out.glob("*.nii*")) == ["good.nii.gz", "more.nii"]
    assert "1 of 3 cases failed" in capsys.readouterr().out


def test_what_is_not_taken_is_told(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (".hidden.nii.gz", "other.mgz", "._good.nii.gz"):
        (bench.scans / name).write_bytes(b"?")
    assert bench.predict() == {}
    lines = capsys.readouterr().out.splitlines()
    assert f"warning: {bench.scans}/.hidden.nii.gz: not taken: hidden, its name begins with a dot" in lines
    expected = ".nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr or .gipl expected"
    assert f"warning: {bench.scans}/other.mgz: not taken: ends in .mgz, {expected}" in lines
    assert f"passed over: what macOS keeps of other files (1 named like ._good.nii.gz, {bench.scans})" in lines
    assert lines[-1] == f"all 1 cases are in {bench.out}, beside what is warned of above"


def test_evaluation_tells_too(bench: Any) -> None:
    references = bench.raw / "labelsTr"
    predictions = Path(shutil.copytree(references, bench.root / "predictions"))
    (references / ".x.nii.gz").touch()
    (predictions / "a.img").touch()
    (predictions / "._a.nii.gz").touch()
    (predictions / "folder.nii").mkdir()
    _, summary, warnings = score_folder(predictions, references)
    assert summary["n_cases"] == 5
    assert set(warnings) == {
        f"{references}/.x.nii.gz: not taken: hidden, its name begins with a dot",
        f"{predictions}/a.img: not taken: ends in .img, {', '.join(ENDINGS[:-1])} or .hdr expected",
        f"{predictions}/folder.nii: not taken: a folder, a file expected",
    }
    for path in (references / "a.nii.gz", predictions / "b.nii.gz"):
        path.unlink()
        link(path)
    with pytest.raises(InputError) as caught:
        score_folder(predictions, references)
    dead = "a link whose target /nowhere/x.nii.gz is not there"
    assert str(caught.value).splitlines()[1:] == [
        f"  - b: {predictions}/b.nii.gz: {dead}",
        f"  - a: {references}/a.nii.gz: {dead}",
    ]


def test_names_with_a_pattern_tell_of_what_does_not_fit(bench: Any) -> None:
    references = bench.root / "cases"
    for case, name in (("a", "a_seg"), ("b", "c_seg")):
        (references / case).mkdir(parents=True)
        shutil.copy(bench.label("a"), references / case / f"{name}.nii.gz")
    predictions = bench.root / "predictions"
    predictions.mkdir()
    shutil.copy(bench.label("a"), predictions)
    _, summary, warnings = score_folder(predictions, references, label_names="*/*_seg", names={0: "b", 1: "x", 2: "y"})
    assert summary["n_cases"] == 1
    assert warnings == [f"{references}/b/c_seg.nii.gz: not taken: not named like */*_seg"]
