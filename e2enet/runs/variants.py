"""What tells the jobs of a sweep apart, beside experiment, row, fold and seed: the settings in which they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from e2enet.common.files import content_key
from e2enet.common.steps import with_order
from e2enet.runs.job_key import WITHOUT_EFFECT
from e2enet.runs.folders import CONFIG_FILE, SweepJob, read_config

# Jobs that differ in these repeat one configuration; experiment and row stand in the manifest by themselves.
REPETITION = ("fold", "seed")
NAMED = ("experiments", "row")
GROUPS_WITHOUT_EFFECT = ("trainer",)  # as choices; what they set that has an effect (devices) stands in the config


def configuration_settings(jobs: Sequence[SweepJob]) -> list[dict[str, Any]]:
    """Per job, the settings {dotted key: value} that name its configuration: equal for jobs of the same one.

    Where every job of an experiment's row has a config.yaml, those of equal resolved configs are one configuration,
    `fold`, `seed` and what leaves a result as it is left out; it is named by what all its jobs were given. So a default
    spelled out in one launch makes no other configuration. Where some have not begun, what they were given decides.
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
    """Of each mapping, the keys and values that not all of them share, as `key=value, key=value`."""
    varied = _varied(settings)
    return [", ".join(f"{key}={mapping[key]}" for key in varied if key in mapping) for mapping in settings]


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted path: value} of a config; an empty mapping and a list are values."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def _job_settings(job: SweepJob) -> dict[str, Any]:
    """Settings {dotted key: value} that decide a job's result: its overrides, or of a plain run its whole config.

    `fold`, `seed`, `experiments` and `row` are left out.
    """
    if job.overrides or not (job.folder / CONFIG_FILE).is_file():
        pairs = [text.lstrip("+").partition("=") for text in job.overrides]
        settings: dict[str, Any] = {key: value for key, _, value in pairs}
    else:
        settings = flat(with_order(read_config(job.folder)))
    return _deciding(settings)


def _named(given: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per job of a row, what all jobs of the same config were given.

    Where this is the same for two configs, as after a default was changed, what varies between configs is added.
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
    """The keys of the first mapping that all of them have with the same value."""
    first, *others = settings
    return {key: value for key, value in first.items() if all(key in own and own[key] == value for own in others)}


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for mapping in settings for key in mapping)
    return [key for key in keys if len({str(mapping.get(key)) for mapping in settings}) > 1]


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that leave a result as it is, repeat a configuration or only name it."""
    left_out = (*WITHOUT_EFFECT, *REPETITION, *NAMED, "hydra")
    return {
        key: value
        for key, value in settings.items()
        if key not in GROUPS_WITHOUT_EFFECT and not any(f"{key}.".startswith(f"{other}.") for other in left_out)
    }
