"""The fuzz targets without atheris: the seed corpus and random changes of it raise nothing but InputError."""

from __future__ import annotations

import importlib.util
import random
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHANGES = 300  # per target; takes some seconds
TARGETS = ["dataset_json", "plan_json", "scan", "mha", "nrrd"]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    found = runpy.run_path(str(HERE / "fuzz.py"))
    from e2enet.common.console import console

    yield found | {"targets": found["targets"](tmp_path_factory.mktemp("fuzz"))}
    console.quiet = False


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]


def changed(content: bytes, others: list[bytes], words: tuple[str, ...], draw: random.Random) -> bytes:
    """Apply one to four changes: a byte, a cut, a repetition, a word, or a part of another seed."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        last = min(last, first + 40)
        match draw.randrange(5):
            case 0 if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
            case 1:
                del data[first:last]
            case 2:
                data[first:first] = data[first:last] * draw.randint(1, 30)
            case 3:
                data[first:last] = draw.choice(words).encode()
            case _:
                other = draw.choice(others)
                start = draw.randrange(len(other) + 1)
                data[first:last] = other[start : start + 40]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed(script: dict, name: str) -> None:
    assert len(seeds(name)) >= 3
    for content in seeds(name):
        script["targets"][name](content)


@pytest.mark.parametrize("name", TARGETS)
def test_random_changes(script: dict, name: str) -> None:
    draw, corpus = random.Random(0), seeds(name)
    for _ in range(CHANGES):
        script["targets"][name](changed(draw.choice(corpus), corpus, script["WORDS"], draw))


def test_the_corpus_is_of_what_the_targets_read(script: dict) -> None:
    assert {path.name for path in (HERE / "corpus").iterdir()} == set(script["targets"])


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris (extra fuzz) is not installed")
@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str) -> None:
    command = [sys.executable, str(HERE / "fuzz.py"), name, "-runs=200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parents[1])
    assert done.returncode == 0 and "Done 2" in done.stderr, done.stderr[-2000:]
