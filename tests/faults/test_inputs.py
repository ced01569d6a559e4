"""The list of malformed inputs is correct: its tests exist, and every row of the tests' tables is listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parents[1]
NODE = re.compile(r"(?P<file>[\w/]+\.py)::(?P<test>\w+)(\[(?P<row>[\w-]+)\])?")
LISTED: dict[str, dict[str, list[str]]] = yaml.safe_load((Path(__file__).parent / "inputs.yaml").read_text("utf-8"))
INPUTS = {name: nodes for rows in LISTED.values() for name, nodes in rows.items()}
# Tables of the test files; their keys are names of rows, which inputs.yaml must list.
TABLES = {
    "test_images.py": "BROKEN",
    "test_datasets.py": "WRONG",
    "test_checkpoints.py": "WRONG",
    "test_other_formats.py": "BROKEN",
}


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def rows(file: Path, table: str) -> set[str]:
    """Return the keys of the dictionary `table` of a module."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict)
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    raise AssertionError(f"{file} has no {table}")


def test_there_are_many() -> None:
    assert len(INPUTS) == sum(map(len, LISTED.values())) >= 40


@pytest.mark.parametrize("name", INPUTS)
def test_it_is_shown_by_a_test(name: str) -> None:
    assert INPUTS[name]
    for node in INPUTS[name]:
        match = NODE.fullmatch(node)
        assert match, node
        file = TESTS / match["file"]
        assert match["test"] in functions(file), node
        assert match["row"] is None or f'"{match["row"]}"' in file.read_text("utf-8"), node


@pytest.mark.parametrize("file", TABLES)
def test_no_row_of_a_table_is_left_out(file: str) -> None:
    listed = {match["row"] for nodes in INPUTS.values() for match in map(NODE.fullmatch, nodes) if match}
    assert rows(TESTS / "faults" / file, TABLES[file]) - listed - NEIGHBOURS == set()


# Rows that are variants of an input in the list.
NEIGHBOURS = {
    *("no-list", "labels-that-are-none", "mirror-axis-that-is-none", "unknown-setting", "keys-that-are-no-names"),
}
