"""docs/security.md: its statements name tests that exist; and a test shows why configs must be trusted."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "security.md").read_text("utf-8")
NODES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NODES)
def test_statements_are_shown_by_tests(file: str, name: str) -> None:
    tree = ast.parse((PROJECT / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_paragraph_of_statements_names_one() -> None:
    assert len(NODES) >= 12
    untrusted = PAGE.split("## Not trusted", 1)[1].split("## What this does not cover", 1)[0]
    bold = [paragraph for paragraph in untrusted.split("\n\n") if paragraph.startswith("**")]
    assert len(bold) >= 4 and all("::test_" in paragraph for paragraph in bold)


def test_the_page_counts_the_inputs() -> None:
    listed = yaml.safe_load((PROJECT / "tests" / "faults" / "inputs.yaml").read_text("utf-8"))
    (told,) = re.findall(r"\[over (\d+) malformed and odd inputs\]", PAGE)
    assert int(told) < sum(map(len, listed.values())) <= int(told) + 20


def test_a_config_is_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking a config imports its `_target_`, so a stranger's code must not be on the path."""
    (tmp_path / "of_a_stranger.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\ndef optimizer(params): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        check_command_line(["optimizer._target_=of_a_stranger.optimizer"])
    except InputError:
        pass  # the optimizer's other settings do not fit, which is reported after the import
    finally:
        sys.modules.pop("of_a_stranger", None)
    assert (tmp_path / "ran").is_file()
