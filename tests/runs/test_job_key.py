"""Which settings distinguish two jobs, and which do not."""

from __future__ import annotations

from typing import Any

import pytest

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.files import content_key
from e2enet.common.steps import with_order
from e2enet.runs.job_key import WITHOUT_EFFECT, _without, job_key, training_key

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "sparsity",
    "row": "s90",
    "paths": {"runs": "runs", "data": "data"},
    "data": {"name": "phantom", "num_workers": 2},
    "trainer": {"devices": 1, "accelerator": "auto", "deterministic": "warn"},
    "training": {"epochs": 20, "checkpoint_activations": False},
    "final": {"mirror": True, "overlay": False, "probabilities": False, "compact": False},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], **values}}


@pytest.mark.parametrize(
    "same",
    [
        {**CONFIG, "name": "other", "row": "s80", "run_folder": "x", "resume": "x", "logger": {"wandb": True}},
        changed("paths", data="elsewhere", runs="elsewhere"),
        changed("data", num_workers=7, prepare_workers=3),
        changed("trainer", accelerator="cpu", strategy="auto", progress=False, probe=False, log_every=1),
        changed("training", checkpoint_activations=True, checkpoint_every=9),
        {**CONFIG, "training": {"epochs": 20}},  # from a version without the keys
        changed("final", overlay=True, probabilities=True, compact=True),
        {**CONFIG, "final": {"mirror": True}},
        {**CONFIG, "initial_weights": None, "pretraining": None},
        changed("data", transforms=None),
        changed("data", facts={"other": {"mirror_axes": [1]}}, paper_patch=[64, 64, 64], augment_on="device"),
        changed("trainer", deterministic=False),  # as trainer=gpu sets it
        changed("training", compile=True, engine="dense"),
        dict(reversed(CONFIG.items())),
    ],
)
def test_labels_places_and_machines_do_not_count(same: dict[str, Any]) -> None:
    assert job_key(same) == job_key(CONFIG)


@pytest.mark.parametrize(
    "other",
    [{**CONFIG, "seed": 1}, changed("data", name="btcv"), changed("trainer", devices=2), {**CONFIG, "pretraining": []}],
)
def test_what_changes_the_weights_counts(other: dict[str, Any]) -> None:
    assert job_key(other) != job_key(CONFIG) and training_key(other) != training_key(CONFIG)


def test_the_device_does_not_count_and_earlier_jobs_are_found() -> None:
    config = as_plain(compose_config(["paths.data=data"]))
    assert job_key(as_plain(compose_config(["paths.data=data", "trainer=gpu"]))) == job_key(config)
    as_before = _without(with_order(config), tuple(path for path in WITHOUT_EFFECT if path != "trainer.deterministic"))
    assert as_before["trainer"]["deterministic"] == "warn" and content_key(as_before) == job_key(config)


def test_what_follows_training_counts_for_the_job_alone() -> None:
    other = changed("final", mirror=False)
    assert job_key(other) != job_key(CONFIG) and training_key(other) == training_key(CONFIG)


def test_the_default_precision_finds_jobs_of_versions_that_trained_in_float32() -> None:
    keys = [job_key(changed("training", precision=precision)) for precision in ("auto", 32, "bf16-mixed")]
    assert keys[0] == keys[1] != keys[2]
