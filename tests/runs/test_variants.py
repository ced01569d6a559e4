"""Grouping of jobs by configuration, and the configurations' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from e2enet.runs.folders import SweepJob
from e2enet.runs.variants import configuration_settings, differing

Make = Callable[..., SweepJob]


@pytest.fixture
def make_job(tmp_path: Path) -> Make:
    """Return a function that makes a job with overrides. A job with a config has begun."""

    def make(*overrides: str, config: str | None = None, row: str | None = "s80") -> SweepJob:
        number = len(list(tmp_path.iterdir()))
        folder = tmp_path / str(number)
        folder.mkdir()
        if config is not None:
            (folder / "config.yaml").write_text(config)
        return SweepJob(str(number), folder, "sparsity", row, number, 0, "phantom", overrides)

    return make


def test_equal_configs_are_one_configuration_named_by_what_all_were_given(make_job: Make) -> None:
    jobs = [
        make_job("training=small", config="{epochs: 9, fold: 0, name: a, trainer: {progress: true}}"),
        make_job("training=small", "epochs=9", "fold=1", config="{epochs: 9, fold: 1, seed: 3, pretraining: null}"),
        make_job("training=small", "epochs=7", config="{epochs: 7, fold: 0}"),
    ]
    assert configuration_settings(jobs) == [{"training": "small"}] * 2 + [{"training": "small", "epochs": "7"}]


def test_processes_make_another_configuration_and_where_they_run_does_not(make_job: Make) -> None:
    configs = ("{trainer: {accelerator: cpu, devices: 1}}", "{trainer: {accelerator: gpu, devices: 1}}")
    jobs = [make_job("trainer=cpu", config=config) for config in configs]
    assert configuration_settings(jobs) == [{}, {}]
    jobs.append(make_job("trainer=ddp", config="{trainer: {accelerator: gpu, devices: 2}}"))
    assert configuration_settings(jobs) == [{"trainer.devices": 1}, {"trainer.devices": 1}, {"trainer.devices": 2}]


def test_what_was_given_decides_where_a_job_of_the_row_has_not_begun(make_job: Make) -> None:
    jobs = [make_job("a=1", config="{a: 1}"), make_job("seed=1", config="{a: 1}"), make_job("a=2")]
    jobs += [make_job("a=1", config="{a: 1}", row="s90"), make_job("seed=1", config="{a: 1}", row="s90")]
    assert configuration_settings(jobs) == [{"a": "1"}, {}, {"a": "2"}, {}, {}]


def test_configs_that_overrides_do_not_tell_apart_are_named_by_their_difference(make_job: Make) -> None:
    jobs = [make_job("a=1", config=f"{{a: 1, b: {{c: 0, d: {d}}}, seed: {d}}}") for d in (5, 6)]
    settings = configuration_settings(jobs)
    assert settings == [{"a": "1", "b.d": 5}, {"a": "1", "b.d": 6}]
    assert differing(settings) == ["b.d=5", "b.d=6"]
