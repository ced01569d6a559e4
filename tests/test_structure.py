"""Structure of the package: rooms (subpackages) import one way only, files stay short, public names are documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "e2enet"
# A room imports itself and the rooms before it.
ROOMS = (
    *("common", "system", "runs", "data", "network", "inference", "evaluation", "training"),
    *("nnunet", "configuration", "sweeps", "view", "report", "export", "commands"),
)
MAX_LINES = 300
MAX_COLUMNS = 120
MAX_FUNCTION_LINES = 60

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str | None:
    """Return the room of a file; None for files outside of the rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imported_rooms(source: str, package: str = "e2enet") -> set[str]:
    """Return the rooms that a file imports anywhere in its code. `package` is the file's own package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("e2enet.")}
    return found & set(ROOMS)


def problems_of_imports(room: str | None, source: str, package: str = "e2enet") -> set[str]:
    """Return the rooms that a file of `room` imports but may not."""
    # A file outside of the rooms runs before all of them, so it may import none.
    allowed = ROOMS[: ROOMS.index(room) + 1] if room else ()
    return imported_rooms(source, package) - set(allowed)


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring: explanations must not count."""
    docstring = ast.get_docstring(function, clean=False)
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    package = ".".join(path.parent.relative_to(PROJECT).parts)
    wrong = problems_of_imports(room, path.read_text(encoding="utf-8"), package)
    assert not wrong, f"{path.name} of {room or 'no room'} imports {sorted(wrong)}; the order is {' -> '.join(ROOMS)}"


def test_the_network_does_not_know_its_engine() -> None:
    files = sorted((PACKAGE / "network").glob("*.py"))
    assert len(files) > 5
    for path in files:
        assert "network.engine" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("data", "from e2enet.common.files import read_json", set()),
        ("data", "import e2enet.network.dsff", {"network"}),
        ("data", "def f():\n    from e2enet import network", {"network"}),
        ("data", "from ..training import run", {"training"}),
        ("data", "from . import plan", set()),
        ("data", "from .network import plan", set()),
        ("report", "import e2enet.training, torch", set()),
        (None, "from e2enet.common import files", {"common"}),
        (None, "from .common import files", {"common"}),
    ],
)
def test_the_import_check_itself(room: str | None, source: str, wrong: set[str]) -> None:
    package = f"e2enet.{room}" if room else "e2enet"
    assert problems_of_imports(room, source, package) == wrong


def test_every_folder_is_a_known_room() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {room_of(path) for path in FILES} == {None, *ROOMS}


def test_lines_of_configs_are_short() -> None:
    """Ruff checks those of Python files."""
    files = [path for folder in ("conf", "experiments") for path in (PROJECT / folder).rglob("*.yaml")]
    assert len(files) > 60
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [number for number, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS] == [], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_documented(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    tree = ast.parse(source)
    undocumented = [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]
    assert ast.get_docstring(tree), "no docstring at the top"
    assert not undocumented, f"without docstring: {undocumented}"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{node.name} ({code_lines(node)})" for node in functions if code_lines(node) > MAX_FUNCTION_LINES]
    assert not long, f"functions of more than {MAX_FUNCTION_LINES} lines: {long}"
