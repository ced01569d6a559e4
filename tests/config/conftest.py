"""A phantom of five tiny cases, prepared once for all runs of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line

# A network of two levels, patches of 8 x 16 x 16, a single pass over everything.
TINY = (
    "data.num_train=5",
    "data.num_test=1",
    "data.shape=[40,40,16]",
    "data.num_workers=0",
    "plan.patch_size=[8,16,16]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "plan.batch_size=2",
    "network.base_features=4",
    "training.epochs=1",
    "training.steps_per_epoch=1",
    "training.validate_every=1",
    "training.precision=32",
    "trainer.accelerator=cpu",
    "trainer.limit_val_batches=1",
    "trainer.probe=false",
    "callbacks.validation_picture=null",
    "final.max_cases=1",
    "final.mirror=false",
)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def tiny(tiny_root: Path, tmp_path: Path) -> list[str]:
    """Overrides of a run that takes a second. The data folder is shared, the run folders are not."""
    return [
        *TINY,
        f"paths.data={tiny_root}/data",
        f"paths.prepared={tiny_root}/prepared",
        f"paths.runs={tmp_path}/runs",
    ]


def problems(line: str) -> list[str]:
    """Return the problem lines of a refused command line; [] if it is accepted."""
    try:
        check_command_line(line.split())
    except InputError as error:
        return [text.removeprefix("  - ") for text in str(error).splitlines()[1:]]
    return []
