"""Hooks of MkDocs: the site shows files outside of docs/ as pages, so that every link of a page works in it.

README.md is the first page, CONTRIBUTING.md another. Each source file that a page links to is a page below source/.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside of docs/, and rewrite the links to them."""
    linked: set[str] = set()
    documents = {page.src_uri: f"docs/{page.src_uri}" for page in files.documentation_pages()}
    documents |= {page: path for path, page in PAGES.items()}
    for page, path in documents.items():
        text = (PROJECT / path).read_text(encoding="utf-8")
        if old := files.get_file_from_path(page):
            files.remove(old)
        files.append(File.generated(config, page, content=rewrite_links(text, path, page, linked)))
    for path in sorted(linked):
        files.append(File.generated(config, page_of(path), content=source_page(path)))
    return files


def rewrite_links(text: str, path: str, page: str, linked: set[str]) -> str:
    """The text of a document with its links as they are in the site; adds source files that it links to."""

    def rewrite(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[2]))
        if not (PROJECT / target).exists():
            return found[0]  # MkDocs reports it
        if not target.startswith("docs/") and target not in PAGES:
            linked.add(target)
        return found[1] + posixpath.relpath(page_of(target), posixpath.dirname(page) or ".") + found[3]

    parts = FENCE.split(text)  # code blocks are the odd ones
    return "".join(part if number % 2 else LINK.sub(rewrite, part) for number, part in enumerate(parts))


def page_of(path: str) -> str:
    """The page in the site of a file or folder of the project, by its path from the project's root."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"source/{path}.md")


def source_page(path: str) -> str:
    """A page that shows a source file, or lists the modules of a folder."""
    source = PROJECT / path
    body = "\n".join(listing(source)) if source.is_dir() else code(source)
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{body}\n"


def code(source: Path) -> str:
    """A fenced block with the text of a file."""
    fence = "`" * 4  # some files hold blocks of three
    return f"{fence}{LANGUAGES.get(source.suffix, 'text')}\n{source.read_text(encoding='utf-8')}{fence}"


def listing(folder: Path) -> Iterator[str]:
    """A line for each module of a folder: its name, and the first line of its docstring."""
    for module in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        yield f"- `{module.name}`: {text.partition(chr(10))[0]}"
