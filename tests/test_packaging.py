"""What pip reads: the oldest versions that are tested are those that pyproject.toml allows."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r'^\s*(?:wandb = \[)?"([\w-]+)>=([\d.]+)', re.MULTILINE)


def lower_bounds() -> dict[str, str]:
    """Return package -> lower bound of the base, of the extras in `all` and of the extra `onnx`."""
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(REQUIREMENT.findall(text.partition("dependencies = [")[2].partition("baselines = [")[0]))


def pins(name: str) -> dict[str, str]:
    """Return package -> version of a constraints file."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    return {package.lower(): version for package, version in re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE)}


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    bounds = lower_bounds()
    of_tests = {"fire": "0.6"}
    assert len(bounds) == 22 and bounds | of_tests == pins("constraints-oldest.txt")
    assert '"fire>=0.6,' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_locked_versions_are_within_the_bounds() -> None:
    locked = pins("constraints.txt")

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert {name for name, bound in lower_bounds().items() if numbers(locked[name]) < numbers(bound)} == set()


def test_no_upper_bound_stands_without_a_reason() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8").partition("dependencies = [")[2]
    bounded = [line for line in text.partition("all = [")[0].splitlines() if re.search(r'"[^"]*<', line)]
    assert bounded and all("#" in line for line in bounded)
