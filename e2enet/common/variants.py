"""What tells the jobs of a sweep apart, beside experiment, row, fold and seed: the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e2enet.common.job_key import WITHOUT_EFFECT
from e2enet.common.sweeps import CONFIG_FILE, SweepJob, read_config

# Jobs that differ in these repeat one configuration; experiment and row stand in the manifest by themselves.
REPETITION = ("fold", "seed")
NAMED = ("experiments", "row")


def job_settings(job: SweepJob) -> dict[str, Any]:
    """Settings {dotted key: value} that decide a job's result: its overrides, or of a plain run its whole config.

    `fold`, `seed`, `experiments` and `row` are left out.
    """
    if job.overrides or not (job.folder / CONFIG_FILE).is_file():
        pairs = [text.lstrip("+").partition("=") for text in job.overrides]
        settings: dict[str, Any] = {key: value for key, _, value in pairs}
    else:
        settings = flat(read_config(job.folder))
    return {key: value for key, value in settings.items() if _decides(key)}


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each mapping, the keys and values that not all of them share, as `key=value, key=value`."""
    keys = dict.fromkeys(key for mapping in settings for key in mapping)
    varied = [key for key in keys if len({str(mapping.get(key)) for mapping in settings}) > 1]
    return [", ".join(f"{key}={mapping[key]}" for key in varied if key in mapping) for mapping in settings]


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted path: value} of a config; an empty mapping and a list are values."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def _decides(key: str) -> bool:
    left_out = (*WITHOUT_EFFECT, *REPETITION, *NAMED, "trainer", "hydra")
    return not any(f"{key}.".startswith(f"{other}.") for other in left_out)
