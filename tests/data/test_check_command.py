"""e2enet check: exit codes, the JSON report, the output, and that nothing else is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import ROOT
from e2enet.data.check import main


def check(toy: Any, *more: str) -> int:
    return main(["data=msd", f"data.name={toy.folder.name}", f"paths.data={toy.folder.parent}", "workers=0", *more])


def plant_everything(toy: Any) -> None:
    """One fault of each kind, each in another case."""
    toy.write_label("a", affine=np.diag([-1.0, -1, 3, 1]))
    image = toy.image("b")
    image.write_bytes(image.read_bytes()[:700])
    toy.write_image("c", np.full((8, 9, 6), np.nan, np.float32))
    toy.write_label("d", np.full((8, 9, 6), 7, np.uint8))
    toy.label("e").unlink()
    toy.write_label("f", np.zeros((8, 9, 6), np.uint8))
    toy.write_image("stray")


def test_all_problems_are_in_one_report_and_nothing_else_is_written(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_everything(toy)
    before = toy.state()
    monkeypatch.chdir(tmp_path)
    assert check(toy, "report=health.json") == 1
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "health.json",
        *(f"raw/{name}" for name in before),
    }
    assert toy.state() == before
    report = json.loads((tmp_path / "health.json").read_text())
    assert all(set(entry) == {"case", "severity", "problem", "file"} for entry in report)
    assert [(entry["case"], entry["severity"]) for entry in report] == [
        *((case, "error") for case in "abcde"),
        (None, "warning"),
        ("f", "warning"),
    ]
    printed = capsys.readouterr().out
    for entry in report:
        assert entry["problem"].splitlines()[0] in printed and entry["file"] in printed
    assert printed.rstrip().endswith("5 errors and 2 warnings: training would be wrong.")


def test_a_sound_dataset(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(toy, f"report={tmp_path}/health.json", "verbose=true") == 0
    assert json.loads((tmp_path / "health.json").read_text()) == []
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"Toy: 6 training, 1 test cases in {toy.folder}" in lines
    assert "orientation LPS (7)" in lines and "image type int16 (7)" in lines and "label type uint8 (6)" in lines
    assert "shape 6 x 8 x 9 voxels in every case" in lines and "spacing 3 x 1 x 1 mm in every case" in lines
    assert "1 liver 324 12.500% 6 of 6" in lines
    assert "a training 6 x 8 x 9 3 x 1 x 1 mm LPS 1 int16 uint8 0: 354, 1: 54, 2: 24" in lines
    assert lines[-1] == "No problem found."


def test_warnings_alone_do_not_fail(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy.write_label("a", np.zeros((8, 9, 6), np.uint8))
    assert check(toy) == 0
    assert capsys.readouterr().out.rstrip().endswith("1 warning: training can start.")


def test_long_ids_are_never_cut(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_case_whose_identifier_is_longer_than_any_terminal_" * 3
    toy.image("a").rename(toy.image(name))
    toy.label("a").rename(toy.label(name))
    text = (toy.folder / "dataset.json").read_text().replace("/a.nii.gz", f"/{name}.nii.gz")
    (toy.folder / "dataset.json").write_text(text)
    toy.write_label(name, np.zeros((8, 9, 6), np.uint8))
    check(toy, "verbose=true")
    printed = capsys.readouterr().out
    assert f"warning: case {name}: {toy.label(name)}: no foreground: every voxel is background\n" in printed
    assert f"  {name}  training" in printed


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["reprot=x.json", "verbose=3"],
            ["reprot: unknown key; did you mean report?", "verbose=3: expected true | fal"],
        ),
        (["data.name=nowhere"], ["nowhere: no such folder"]),
        (["report=health.txt"], ["report=health.txt: a file ending in .json expected"]),
        (["report=raw/toy/dataset.json"], ["dataset.json: holds something else than a report"]),
        (["repair=raw"], ["repair=raw: a folder apart from the dataset"]),
        (["repair=raw/toy/fixed"], ["a folder apart from the dataset"]),
        (["repair=full"], ["repair=full: is there and not empty; a new or empty folder expected"]),
    ],
)
def test_wrong_usage(
    toy: Any,
    arguments: list[str],
    messages: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(SystemExit) as caught:
        check(toy, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error


def test_as_a_program(toy: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "e2enet.data.check",
        "data=msd",
        "data.name=toy",
        f"paths.data={toy.folder.parent}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    toy.write_label("b", np.full((8, 9, 6), 7, np.uint8))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "error: case b: " in done.stdout and done.stderr == ""
    shown = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0 and "repair  " in shown.stdout and "conf/data/NAME.yaml" in shown.stdout


def test_the_documented_example_is_printed_like_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "checking.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(code, "checking.md", "exec"), {})
    ((command, output),) = re.findall(r"^```\n\$ (.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    capsys.readouterr()
    assert main([*shlex.split(command)[2:], "workers=0"]) == 1
    assert capsys.readouterr().out == output


def test_real_scans_have_no_error(shared_data: Path, tmp_path: Path) -> None:
    arguments = ["data=msd", "data.name=Task04_Hippocampus", f"paths.data={shared_data}"]
    assert main([*arguments, f"report={tmp_path}/health.json"]) == 0
    report = json.loads((tmp_path / "health.json").read_text())
    # Two of its labels really are stored as float32.
    assert [(entry["case"], entry["severity"]) for entry in report] == [
        ("hippocampus_003", "warning"),
        ("hippocampus_243", "warning"),
    ]
    for entry in report:
        assert nib.load(entry["file"]).get_data_dtype() == np.float32
