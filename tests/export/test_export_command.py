"""`e2enet export`: its targets, the folder that it writes, and what it refuses before any work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from e2enet.export.__main__ import TARGETS, Target, main

MODULE = """
def write(model, folder):
    (folder / "note.txt").write_text(f"{model.plan.patch_size} {sorted(model.labels)}")

def fail(model, folder):
    (folder / "half.txt").write_text("half")
    raise RuntimeError("the disk is gone")
"""


@pytest.fixture
def note(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two further targets: a line each, as a later one would be added."""
    folder = tmp_path_factory.mktemp("targets")
    (folder / "note_targets.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(TARGETS, "note", Target("note_targets:write", "a line of text"))
    monkeypatch.setitem(TARGETS, "fail", Target("note_targets:fail", "nothing"))


def test_targets_are_functions_of_modules() -> None:
    assert {"bundle", "onnx", "torch"} <= set(TARGETS)
    for target in TARGETS.values():
        module, _, name = target.write.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        assert f"def {name}(model: LoadedModel, folder: Path) -> None:" in Path(spec.origin).read_text("utf-8")


@pytest.mark.usefixtures("note")
@pytest.mark.parametrize("given", ["run", "run/checkpoints/best.ckpt"])
def test_the_folder_is_named_after_the_run(given: str, make_run, tmp_path: Path, monkeypatch, capsys) -> None:
    make_run()
    monkeypatch.chdir(tmp_path)
    main([given, "--to", "note"])
    assert (tmp_path / "run-note" / "note.txt").read_text() == "(8, 16, 16) [0, 1, 2, 3]"
    assert "written: run-note: note.txt" in capsys.readouterr().out


def refusal(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("note")
def test_a_folder_with_content_is_not_replaced(make_run, tmp_path: Path, capsys) -> None:
    run, output = make_run(), tmp_path / "out"
    output.mkdir()
    main([str(run), "--to", "note", "--output", str(output)])  # an empty one is filled
    assert [path.name for path in output.iterdir()] == ["note.txt"]
    told = refusal([str(run), "--to", "note", "--output", str(output)], capsys)
    assert told == f"error: --output {output}: is there and not empty; a new or empty folder expected\n"
    output = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert f"--output {output}: {output} is a file" in refusal(
        [str(run), "--to", "note", "--output", str(output)], capsys
    )


@pytest.mark.usefixtures("note")
def test_a_failure_leaves_nothing(make_run, tmp_path: Path) -> None:
    run = make_run()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="the disk is gone"):
        main([str(run), "--to", "fail", "--output", str(tmp_path / "out")])
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_exported_is_told(tmp_path: Path, capsys) -> None:
    told = refusal([str(tmp_path / "none"), "--to", "torch", "--output", str(tmp_path / "out")], capsys)
    assert told == f"error: {tmp_path / 'none'}: no such checkpoint\n"
    assert "invalid choice: 'tensorflow'" in refusal([str(tmp_path), "--to", "tensorflow"], capsys)
    assert not (tmp_path / "out").exists()
