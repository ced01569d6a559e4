"""Work in processes: every item has an outcome, whatever happens to the others. Items are Python expressions."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2enet.system.processes import THREAD_VARIABLES, run_in_processes

DIE = "__import__('os')._exit(7)"
KILLED = "__import__('os').kill(__import__('os').getpid(), 9)"
WRONG_INPUT = "__import__('e2enet.common.files', fromlist=['x']).read_json('a.json')"


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_item_has_its_outcome(num_workers: int) -> None:
    items = ["2 + 3", "1 / 0", WRONG_INPUT, "'last'"]
    outcomes = {outcome.item: outcome for outcome in run_in_processes(eval, items, num_workers)}
    assert set(outcomes) == set(items)
    assert outcomes["2 + 3"].result == 5 and outcomes["'last'"].result == "last"
    failure = outcomes["1 / 0"].failure
    assert failure is not None and failure.message == "ZeroDivisionError: division by zero"
    assert not failure.wrong_input and "Traceback" in failure.traceback
    failure = outcomes[WRONG_INPUT].failure
    assert failure is not None and failure.wrong_input and failure.message == "a.json: no such file"


def test_a_dead_worker_is_told_with_its_item_and_replaced() -> None:
    outcomes = {outcome.item: outcome for outcome in run_in_processes(eval, ["1", DIE, "2", KILLED, "3"], 1)}
    assert [outcomes[item].result for item in "123"] == [1, 2, 3]
    died, killed = outcomes[DIE].failure, outcomes[KILLED].failure
    assert died is not None and died.message == "its worker process ended with exit code 7"
    assert killed is not None and killed.message.startswith("its worker process was ended by SIGKILL, as the system")


def test_workers_keep_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    question = f"[__import__('os').environ[name] for name in {THREAD_VARIABLES}]"
    (outcome,) = run_in_processes(eval, [question], 1)
    assert outcome.result == ["1"] * len(THREAD_VARIABLES)
    assert os.environ["OMP_NUM_THREADS"] == "5" and "MKL_NUM_THREADS" not in os.environ


def test_left_early_it_ends_its_processes() -> None:
    others = multiprocessing.active_children()
    outcomes = run_in_processes(eval, ["1", "__import__('time').sleep(600)"], 2)
    assert next(outcomes).result == 1
    outcomes.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= set(others)


def test_no_items_no_processes() -> None:
    assert list(run_in_processes(eval, [], 4)) == []


def test_a_script_without_a_main_guard_ends_with_a_word(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from e2enet.system.processes import run_in_processes\n"
        "print(list(run_in_processes(eval, ['1', '2', '3'], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "RuntimeError: a worker process ended with exit code 1 before its first item" in done.stderr
    assert 'under `if __name__ == "__main__":`' in done.stderr
