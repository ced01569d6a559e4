"""The site of docs/: it builds without a warning, shows what the pages show, and loads nothing from a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("material", reason="needs the extra docs")
pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")

PROJECT = Path(__file__).parents[1]
# Elements that a browser loads by itself; <a href> waits for a click.
LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|audio|video)\b[^>]*?\b(?:src|srcset|href)=[\"']?((?:https?:)?//[^\"'\s>]*)"
)
PICTURE = re.compile(r"<img\b[^>]*?\bsrc=\"([^\"]*)\"")
ENTRY = re.compile(r"^::: (\S+)\n((?: .*\n)*)", re.MULTILINE)


def reference() -> list[str]:
    """Return every name that docs/api.md is to explain: its entries, and the members that these list."""
    names = []
    for entry, below in ENTRY.findall((PROJECT / "docs" / "api.md").read_text(encoding="utf-8")):
        options = (yaml.safe_load(below) or {}).get("options", {})
        names += [entry] if options.get("show_root_heading", True) else []
        names += [f"{entry}.{member}" for member in options.get("members", [])]
    return names


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    # Never with -q: it drops warnings, and with them --strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(PROJECT / "mkdocs.yml", folder)
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: found for page in pages if (found := LOADED.findall(page.read_text(encoding="utf-8")))} == {}
    sheets = [*site.rglob("*.css")]
    assert sheets
    assert not [sheet for sheet in sheets if re.search(r"(?:url\(|@import)[\"' ]*(?:https?:)?//", sheet.read_text())]


def test_what_a_browser_would_load_is_found() -> None:
    text = '<script defer src="https://a.b/c.js"></script><a href="https://x.y"><img alt="" src=\'//z/p.png\'>'
    assert LOADED.findall(text) == ["https://a.b/c.js", "//z/p.png"]


def test_every_picture_is_shown(site: Path) -> None:
    shown = set()
    for page in site.rglob("*.html"):
        for source in PICTURE.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / source).is_file(), (page.name, source)
            shown.add(Path(source).name)
    assert shown >= {path.name for path in (PROJECT / "docs" / "figures").glob("*.png")}
    assert "figures/phantom_overlay.png" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference())
def test_the_reference_explains_public_names(site: Path, name: str) -> None:
    """A member that is gone is no error of the build."""
    assert f'id="{name}"' in (site / "api.html").read_text(encoding="utf-8")


def test_the_reference_explains_no_other_names(site: Path) -> None:
    """Classes list their members: otherwise one that is gone would not be missed."""
    shown = re.findall(r'id="(e2enet\.[^"]*)"', (site / "api.html").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(reference()) and len(shown) > 50


def test_linked_source_files_are_pages(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "source" / "conf" / "predict.yaml.html").read_text(encoding="utf-8"))
    assert "# true | false: also" in text and "checkpoint: ???" in text
    data = (site / "data.html").read_text(encoding="utf-8")
    assert 'href="source/conf/predict.yaml.html"' in data
    listed = (site / "source" / "e2enet" / "network" / "engine.html").read_text(encoding="utf-8")
    assert "<code>select.py</code>" in listed


def test_broken_links_fail(tmp_path: Path) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "other.md").write_text("# Other\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {PROJECT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md, other.md]\n")
    (pages / "index.md").write_text("# Sound\n\n[other](other.md#other)\n")
    assert build(config, tmp_path / "site").returncode == 0
    broken = ["[gone](gone.md)", "[here](#nowhere)", "[other](other.md#nowhere)", "![picture](gone.png)"]
    (pages / "index.md").write_text("# Broken\n\n" + "\n\n".join(broken))
    done = build(config, tmp_path / "site")
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("WARNING")]
    assert done.returncode == 1
    for target in ("gone.md", "#nowhere", "other.md#nowhere", "gone.png"):
        assert [line for line in warnings if f"'{target}'" in line], target


def test_a_missing_name_of_the_reference_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("::: e2enet.network.NoSuchName\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {PROJECT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n")
    done = build(config, tmp_path / "site")
    assert done.returncode == 1 and "e2enet.network.NoSuchName" in done.stdout + done.stderr
