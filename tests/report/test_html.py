"""The page is self-contained: nothing is loaded, pictures are embedded, and text from runs is never markup."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.report.html import Page, PageSection, duration, heading_groups, page_of, render_page, write_page
from e2enet.report.pictures.gallery import Picture, draw_pictures
from e2enet.report.results.options import Options
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.sections import Report, build_report
from e2enet.report.tables.table import Column, Table, text
from tests.report.conftest import JOBS

MARKUP = "<script>alert('x')</script> & <img src=http://example.org/x.png>"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Collect tags with their attributes, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def report_of(folder: Path) -> Report:
    return build_report(load_runs(folder), Options(resamples=100), count=lambda overrides, setting: {})


def test_the_page_of_a_sweep_stands_alone(sweep_folder: Path, tmp_path: Path) -> None:
    report = report_of(sweep_folder)
    pictures = draw_pictures(report, tmp_path / "figures")
    page = Reader(write_page(tmp_path / "index.html", report, pictures).read_text(encoding="utf-8"))
    assert page.open == []
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(value and value.startswith(("data:", "#")) for value in addresses)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "video")]
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert all(value[1:] in anchors for value in addresses if value and value.startswith("#"))
    inlined = [base64.b64decode(str(value).partition(",")[2]) for value in addresses if str(value).startswith("data:")]
    assert inlined == [picture.path.read_bytes() for picture in pictures["sparsity"] if picture.path]
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_page_tells_states_and_errors(sweep_folder: Path) -> None:
    report = report_of(sweep_folder)
    page = page_of(report, {})
    assert page.counts == [("pending", 1), ("finished", 5), ("crashed", 1), ("interrupted", 1)]
    assert page.facts == ["on Task04_Hippocampus", "35 min of training in all"]
    (crashed,) = [job for job in page.jobs if job.message]
    assert crashed.message == "loss is nan\nat step <7>"
    assert crashed.traceback == "Traceback ..\nloss is nan\nat step <7>"
    assert page.jobs[0].cells["epochs"] == "4 of 4" and page.jobs[0].cells["row"] == "S = 0.9"
    # In percent, as in tables and pictures.
    assert page.jobs[0].cells["Dice (%)"] == f"{100 * report.runs.jobs['dice'][0]:.2f}"
    assert page.jobs[0].cells["best (%)"] == "80.00"
    words = Reader(render_page(page)).words
    assert "loss is nan\nat step <7>" in words and "S = 0.9" in words


def test_texts_from_outside_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    column = Column(MARKUP, text("value"), group=MARKUP)
    section = PageSection(
        anchor=MARKUP,
        title=MARKUP,
        tables=[Table(MARKUP + " table", (column,), ({"value": MARKUP},), (MARKUP,))],
        pictures=[Picture(MARKUP, MARKUP, tmp_path / "x.png"), Picture(MARKUP, "", problem=MARKUP, folded=True)],
        command=MARKUP,
    )
    page = Reader(render_page(Page(MARKUP, [(MARKUP, 1)], [MARKUP], [section], [])))
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own script
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [
        "data:image/png;base64," + base64.b64encode(PNG).decode()
    ]
    assert sum(MARKUP in words for words in page.words) >= 12


def test_bold_is_the_best_and_the_reference_a_word(sweep_folder: Path) -> None:
    report = report_of(sweep_folder)
    html = render_page(page_of(report, {}))
    rows = [row for row in html.split("<tr ")[1:] if "S = 0." in row]
    bold = {row.split("S = ")[1][:3]: re.findall(r'"number best ">([\d.]+)', row) for row in rows[:3]}
    best = {key: max(report.sections[0].lines[:3], key=lambda line: line[key]) for key in ("dice", "nsd")}
    best["hd95"] = min(report.sections[0].lines[:3], key=lambda line: line["hd95"])
    expected = {"0.9": ["7.64", "492.29"], "0.8": ["90.3"], "0.7": []}
    for key in ("dice", "nsd", "hd95"):
        expected[best[key]["label"].removeprefix("S = ")].append(f"{best[key][key]:.2f}")
    assert bold == expected
    assert "S = 0.8 (reference)" in html and html.count("(reference)") == 3  # in accuracy, ranks and cost
    assert "font-weight" not in next(line for line in html.splitlines() if line.startswith("tr.reference"))


def test_pictures_that_cannot_be_drawn_say_why_once(sweep_folder: Path, tmp_path: Path) -> None:
    pictures = draw_pictures(report_of(sweep_folder), tmp_path)["sparsity"]
    drawn = [picture.path.name for picture in pictures if picture.path]
    stems = ("tradeoff", "classes", "ranks", "repetitions", "curves", "topology")
    assert drawn == [f"sparsity-{stem}.svg" for stem in stems]
    assert {path.name for path in tmp_path.glob("*.pdf")} == {name.replace(".svg", ".pdf") for name in drawn}
    (missing,) = [picture for picture in pictures if picture.problem]
    assert missing.title == "Worst and best case: S = 0.8" and "no such folder" in missing.problem
    shown = Reader(render_page(page_of(report_of(sweep_folder), {"sparsity": pictures})))
    assert any(missing.problem in words for words in shown.words)


def test_rows_to_compare_must_be_there(sweep_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compare s80 s85: .* expected two of s90 \| s80 \| s70 \| dense \| s50"):
        draw_pictures(report_of(sweep_folder), tmp_path, compare=("s80", "s85"))


def test_a_job_of_two_experiments_is_counted_once(sweep_folder: Path) -> None:
    manifest = json.loads((sweep_folder / "sweep.json").read_text())
    manifest["jobs"].append(manifest["jobs"][0] | {"experiment": None, "row": None})
    (sweep_folder / "sweep.json").write_text(json.dumps(manifest))
    page = page_of(report_of(sweep_folder), {})
    assert dict(page.counts)["finished"] == 5 and len(page.jobs) == len(JOBS) + 1


def test_small_parts() -> None:
    columns = [Column("a", str), *(Column(name, str, group="g") for name in "bc"), Column("d", str, group="h")]
    assert heading_groups(columns) == [("", 1), ("g", 2), ("h", 1)]
    assert heading_groups(columns[:1]) == []
    assert [duration(seconds) for seconds in (45, 720, 12000, float("nan"))] == ["45 s", "12 min", "3 h 20 min", ""]
