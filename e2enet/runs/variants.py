"""Find the settings that tell a sweep's jobs apart, beside experiment, row, fold and seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from e2enet.common.files import content_key
from e2enet.common.steps import with_order
from e2enet.runs.job_key import WITHOUT_EFFECT
from e2enet.runs.folders import CONFIG_FILE, SweepJob, read_config

# Jobs that differ only in these repeat one configuration. The manifest lists experiment and row separately.
REPETITION = ("fold", "seed")
NAMED = ("experiments", "row")
GROUPS_WITHOUT_EFFECT = ("trainer",)  # choices of a group; their settings that matter (devices) are in the config


def configuration_settings(jobs: Sequence[SweepJob]) -> list[dict[str, Any]]:
    """Return for each job the settings {dotted key: value} that name its configuration, equal for jobs of the same one.

    If every job of an experiment's row has a config.yaml, jobs with equal resolved configs are one configuration.
    `fold`, `seed` and settings that do not change the result are ignored. The settings that all its jobs were given
    name the configuration. So a default spelled out in one launch makes no new one. If some jobs of the row have not
    begun, the given settings decide.
    """
    settings = [_job_settings(job) for job in jobs]
    rows: dict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        rows[job.experiment, job.row].append(index)
    for members in rows.values():
        if all((jobs[index].folder / CONFIG_FILE).is_file() for index in members):
            configs = [_deciding(flat(with_order(read_config(jobs[index].folder)))) for index in members]
            named = _named([settings[index] for index in members], configs)
            for index, name in zip(members, named, strict=True):
                settings[index] = name
    return settings


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each mapping the items that not all mappings share, as `key=value, key=value`."""
    varied = _varied(settings)
    return [", ".join(f"{key}={mapping[key]}" for key in varied if key in mapping) for mapping in settings]


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted path: value} of a config; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def _job_settings(job: SweepJob) -> dict[str, Any]:
    """Return the settings {dotted key: value} that decide a job's result: its overrides, or a plain run's whole config.

    `fold`, `seed`, `experiments` and `row` are left out.
    """
    if job.overrides or not (job.folder / CONFIG_FILE).is_file():
        pairs = [text.lstrip("+").partition("=") for text in job.overrides]
        settings: dict[str, Any] = {key: value for key, _, value in pairs}
    else:
        settings = flat(with_order(read_config(job.folder)))
    return _deciding(settings)


def _named(given: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each job of a row the settings that all jobs of the same config were given.

    If these are the same for two configs, as after a default was changed, the settings that differ are added.
    """
    # As in job keys, null counts as absent.
    keys = [content_key({name: value for name, value in config.items() if value is not None}) for config in configs]
    names = {key: _shared([own for own, other in zip(given, keys, strict=True) if other == key]) for key in keys}
    if len({content_key(name) for name in names.values()}) < len(names):
        varied = _varied(configs)
        for key, config in zip(keys, configs, strict=True):
            names[key] |= {name: config[name] for name in varied if config.get(name) is not None}
    return [names[key] for key in keys]


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items that all mappings have in common."""
    first, *others = settings
    return {key: value for key, value in first.items() if all(key in own and own[key] == value for own in others)}


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for mapping in settings for key in mapping)
    return [key for key in keys if len({str(mapping.get(key)) for mapping in settings}) > 1]


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the settings that do not change the result, repeat a configuration or only name it."""
    left_out = (*WITHOUT_EFFECT, *REPETITION, *NAMED, "hydra")
    return {
        key: value
        for key, value in settings.items()
        if key not in GROUPS_WITHOUT_EFFECT and not any(f"{key}.".startswith(f"{other}.") for other in left_out)
    }
