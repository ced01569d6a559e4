"""The tutorial: its notebook runs from top to bottom and runs the commands of its page."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
pytest.importorskip("ipykernel", reason="needs the extra test")

PROJECT = Path(__file__).parents[1]
# Two steps of a narrow network, for the notebook's cell `parameters`.
TINY = (
    "training.base_features=4 training.epochs=1 training.steps_per_epoch=2 training.validate_full=0 "
    "training.validation_patches=1 data.limit_cases=5 data.num_workers=0 final.mirror=false final.step=1 "
    "final.max_cases=1"
)


def read_notebook():
    return nbformat.read(PROJECT / "docs" / "tutorial.ipynb", as_version=4)


def parameters(notebook) -> str:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


def test_the_notebook_runs_the_commands_of_the_page() -> None:
    notebook = read_notebook()
    values: dict[str, str] = {}
    exec(parameters(notebook), values)
    lines = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    run = [line.removeprefix("!").format(settings=values["settings"]) for line in lines if line.startswith("!")]
    page = (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    told = "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    told = [line for line in told.splitlines() if line.startswith("e2enet ")]
    assert len(run) > 4 and [shlex.split(line) for line in run] == [shlex.split(line) for line in told]


def test_the_notebook_holds_no_outputs() -> None:
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "e2enet").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m e2enet "$@"\n')
    (programs / "e2enet").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read_notebook()
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f"settings = {TINY!r}"
    work = tmp_path / "work"
    work.mkdir()
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
    printed = {cell.id: printed_by(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert "run folder: " in printed["train"]
    assert "all 4 cases are in predictions" in printed["predict"]
    assert re.findall(r"^(\d) (\w+)", printed["scores"], re.MULTILINE) == [
        ("1", "ellipsoid"),
        ("2", "sphere"),
        ("3", "tube"),
        ("4", "cone_up"),
        ("5", "cone_down"),
    ]
    assert re.search(r"^density 0\.(19|20|21)\d, ", printed["python"])
    assert (work / "runs" / "tutorial" / "report" / "index.html").is_file()
    assert (work / "viewer" / "index.html").is_file()


def printed_by(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)
