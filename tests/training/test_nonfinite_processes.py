"""A loss that is not finite in one of two processes: both skip the batch, or both stop.

This file is also the program of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.training.dsff_callback import DSFFCallback
from tests.training.test_nonfinite import assert_equal, fit, make_module, records, samples, weights


def main(folder: Path) -> None:
    """Run one of two processes. The second gets a bad batch, which is skipped at first and then stops training."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    data = samples(range(8 * rank, 8 * rank + 8), bad=[10])
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    apart = "++loss.batch_dice=false"  # a Dice over both processes would be NaN on both
    module = make_module("training.skip_nonfinite=1", apart)
    masks = DSFFCallback(0.5, update_every=2, update_until=0.5)
    fit(module, folder / "skip", data, masks, **options)
    found = {"weights": weights(module), "step": masks.step}
    for name in ("stop", "late"):
        module = make_module(apart)
        module.guard.reads_late = name == "late"
        try:
            fit(module, folder / name, data, **options)
        except InputError as error:
            found |= {name: str(error), f"{name}_weights": weights(module)}
    torch.save(found, folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_decide_alike(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [*launcher, __file__, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["step"] == second["step"] == 3  # of four batches
    assert_equal(first["weights"], second["weights"])
    assert all(value.isfinite().all() for value in first["weights"].values())
    for folder in ("skip", "stop", "late"):
        (record,) = records(tmp_path / folder)  # written by the second process alone
        assert record["rank"] == 1 and [case["case"] for case in record["cases"]] == ["case_10", "case_11"]
    for name in ("stop", "late"):
        assert f"in another process: see {tmp_path}/{name}/nonfinite" in first[name]
        assert f"cases case_10, case_11: statistics of the batch in {tmp_path}/{name}/nonfinite/" in second[name]
        assert_equal(first[f"{name}_weights"], second[f"{name}_weights"])
        assert all(value.isfinite().all() for value in first[f"{name}_weights"].values())
    assert "in another process" in done.stdout and "left out (1 in a row, at most 1)" in done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
