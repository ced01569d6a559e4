"""Number of workers by memory and cores, with given figures."""

from __future__ import annotations

import pytest

from e2enet.common.errors import InputError
from e2enet.system import workload
from e2enet.system.workload import PROCESS_BYTES, fit_workers, gigabytes

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten cores and 20 GB of memory, of which nine tenths may be used."""
    monkeypatch.setattr(workload, "available_memory", lambda: 20 * GB)
    monkeypatch.setattr(workload, "available_cores", lambda: 10)


def test_workers_are_as_many_as_the_largest_cases_leave_memory_for() -> None:
    needs = {"a": 8 * GB, "b": 7 * GB, "c": GB, "d": GB}
    load = fit_workers(needs)
    # Three: 8 + 7 + 1 GB and three interpreters fit. A fourth worker would need 18.7 of 18 GB.
    assert load.workers == 3 and load.memory == 16 * GB + 3 * PROCESS_BYTES and load.free_memory == 20 * GB
    assert fit_workers({str(index): GB // 10 for index in range(100)}).workers == 10  # limited by cores
    assert fit_workers({"a": GB, "b": GB}).workers == 2  # limited by cases


def test_small_work_needs_no_process() -> None:
    assert fit_workers({"a": GB, "b": GB}, small=True).workers == 0
    assert fit_workers({"a": GB, "b": GB}, 1, small=True).workers == 1  # unless a worker is requested
    assert fit_workers({"a": GB, "b": GB}, 0).workers == 0


def test_what_cannot_fit_is_refused_with_the_case() -> None:
    with pytest.raises(InputError, match=r"case b takes about 30\.0 GB of memory, 20\.0 GB are free"):
        fit_workers({"a": GB, "b": 30 * GB})
    with pytest.raises(InputError, match=r"3 processes take up to 2\d\.\d GB.* at most 2 expected"):
        fit_workers({"a": 8 * GB, "b": 8 * GB, "c": 8 * GB}, 3)


def test_sizes_are_readable() -> None:
    assert gigabytes(3.25e9) == "3.2 GB" and gigabytes(1.5e6) == "1.5 MB"
    assert str(fit_workers({"a": GB}, 1)) == "1 process, up to 1.4 GB of memory (20.0 GB free)"
