"""e2enet prepare: from raw files to prepared cases; a repeated call does only what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2enet.common.errors import ExitCode
from e2enet.data.prepare import main


@pytest.fixture
def arguments(toy, tmp_path: Path) -> list[str]:
    return ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}", f"paths.prepared={tmp_path / 'prepared'}"]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("cases_*/*")}


def test_everything_is_there_after_one_call_and_kept_by_the_next(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    folder = tmp_path / "prepared/toy"
    said = capsys.readouterr().out
    assert "6 cases to prepare: up to" in said and "of disk" in said and "of memory" in said
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["patch_size"] == [6, 8, 10]  # planned by the rules, not the small patch of train.py's quick preset
    first = times(folder)
    assert len(first) == 6 * 4
    main(arguments)
    assert times(folder) == first and "to prepare" not in capsys.readouterr().out


def test_only_what_depends_on_a_change_is_redone(arguments: list[str], toy, tmp_path: Path) -> None:
    toy.describe(modality={"0": "MRI"})  # normalised per case: one file does not change the plan
    main(arguments)
    before = times(tmp_path / "prepared")
    toy.write_image("c")
    main(arguments)
    after = times(tmp_path / "prepared")
    assert {name.split(".")[0] for name in before if after[name] != before[name]} == {"c"}
    main([*arguments, "plan.batch_size=5"])
    assert times(tmp_path / "prepared") == after
    main([*arguments, "plan.spacing=[4,2,2]"])
    assert len(list((tmp_path / "prepared/toy").glob("cases_*"))) == 2


def test_an_edited_plan_decides(arguments: list[str], tmp_path: Path) -> None:
    main(arguments)
    path = tmp_path / "prepared/toy/plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing": [6.0, 1.0, 1.0]}))
    main(arguments)
    assert len(list((tmp_path / "prepared/toy").glob("cases_*"))) == 2
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "plan=paper"])
    assert stopped.value.code == ExitCode.INPUT_ERROR


def test_leftovers_are_named_and_stay(
    arguments: list[str], toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    main([*arguments, "plan.spacing=[4,2,2]"])
    capsys.readouterr()
    training = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in "abcde"]
    toy.describe(training=training)
    toy.image("f").unlink()
    toy.label("f").unlink()
    main([*arguments, "plan.spacing=[4,2,2]"])
    said = capsys.readouterr().out
    assert "prepared for other plans or labels, may be deleted: cases_" in said
    assert "no raw case any more" not in said  # CT: other cases have other intensities, hence a new folder
    toy.describe(training=training, modality={"0": "MRI"})
    main(arguments)
    toy.describe(training=training[:4], modality={"0": "MRI"})
    capsys.readouterr()
    main(arguments)
    assert "no raw case any more, not used, may be deleted: e (" in capsys.readouterr().out
    assert list((tmp_path / "prepared/toy").glob("cases_*/e.json"))


def test_wrong_keys_end_with_the_code_of_wrong_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "data.prepare_workers=-1", "plan.bach_size=3"])
    assert stopped.value.code == ExitCode.INPUT_ERROR
    said = capsys.readouterr().err
    assert "data.prepare_workers" in said and "plan.bach_size" in said
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "usage: e2enet prepare" in capsys.readouterr().out
