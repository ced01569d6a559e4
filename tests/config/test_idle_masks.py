"""Settings of masks for a run without masks are refused: it would be taken for one of sparse fusion."""

from __future__ import annotations

import pytest

from tests.config.conftest import problems

LAPTOP = "training=laptop trainer.probe=false"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{LAPTOP} dsff.density=0.1", "dsff.density=0.1: has no effect, since fusion is dense here"),
        (
            "dsff=dense dsff.growth=gradient",
            "beside it, e.g. dsff=dsff, or no dsff.growth",
        ),
        ("dsff.enabled=false dsff.density=0.1", "dsff.density=0.1: has no effect"),
        (f"-m {LAPTOP} dsff.density=0.1,0.2", "dsff.density=0.2: has no effect"),
        ("-m training=small,laptop dsff.density=0.1,0.2", "dsff.density=0.1: has no effect"),
        ("-m experiments=sparsity training=small dsff=dense", "row s90: dsff.density=0.1: has no effect"),
        ("-m experiments=sparsity training=small network=unet", "row s50: dsff.density=0.5: has no effect"),
        ("-m experiments=seeds training=laptop dsff.density=0.1", "dsff.density=0.1: has no effect"),
    ],
)
def test_settings_of_masks_without_masks(line: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(line)), problems(line)


@pytest.mark.parametrize(
    "line",
    [
        f"{LAPTOP} dsff=dsff dsff.density=0.1",
        "training=hippocampus dsff=dense",  # the preset's own density is no one's wish
        "-m dsff=dsff,dense dsff.density=0.1",
        "-m network=e2enet,unet dsff.density=0.1",
        "-m experiments=schedule training=small dsff.density=0.3",  # its row `dense` stands beside the others
        "-m experiments=schedule row=dense training=small dsff.density=0.3",
        "-m experiments=sparsity training=laptop dsff=rigl",
    ],
)
def test_runs_without_masks_that_are_wanted(line: str) -> None:
    assert problems(line) == []
