"""sweep.json: every job of a sweep folder, registered before it starts, by this launch or an earlier one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2enet.common.configs import as_plain
from e2enet.common.errors import raise_problems
from e2enet.common.files import write_json
from e2enet.runs.folders import CONFIG_FILE, MANIFEST, MANIFEST_VERSION, Sweep, SweepJob, read_config, read_sweep
from e2enet.runs.job_key import SHORT, WITHOUT_EFFECT, job_key, training_key
from e2enet.runs.rows import ComposedJob
from e2enet.system.locks import locked_file
from e2enet.training.run_folder import has_begun, refuse_run

MANIFEST_LOCK = ".sweep.lock"
LONGEST_LABEL = 80  # characters of a folder's name before its key


def register_jobs(folder: Path, name: str, jobs: Sequence[ComposedJob]) -> dict[str, Path]:
    """Add the jobs that a sweep's manifest lacks; return {key: folder} of all jobs given.

    Several launches may do so at once. Several experiments may share a folder: a job that is a row of two of them is
    listed twice and has one folder.

    Raises:
        InputError: a started job of the same experiment, row, fold, seed and data has another configuration (the
            results of both would end up in one line of a table), or `folder` is the folder of a run.
    """
    refuse_run(folder)
    with locked_file(folder / MANIFEST_LOCK, f"waiting for another launch that writes {folder / MANIFEST}"):
        known = read_sweep(folder) if (folder / MANIFEST).is_file() else Sweep(folder, name, {}, ())
        listed = known.jobs
        known = replace(known, jobs=tuple(_known_anew(job, {job.key for job in jobs}) for job in listed))
        folders = {job.key: job.folder for job in known.jobs}
        new = {job.key: folder / _folder_name(job) for job in jobs if job.key not in folders}
        folders |= new
        lines = {_line_of(job): job for job in known.jobs}
        added = {(job.key, job.experiment, job.content.get("row")): job for job in jobs}
        superseded = _superseded(known.jobs, [job for line, job in added.items() if line not in lines], jobs)
        ablations = dict(known.ablations)
        for job in jobs:
            if job.experiment is not None and job.config.get("ablation") is not None:
                ablations[job.experiment] = as_plain(job.config.ablation)
        content = [_manifest_line(job) for line, job in lines.items() if line not in superseded]
        content += [_composed_line(job, folders[job.key]) for line, job in added.items() if line not in lines]
        if superseded or len(content) != len(lines) or known.jobs != listed or ablations != known.ablations:
            manifest = {"version": MANIFEST_VERSION, "name": known.name, "ablations": ablations, "jobs": content}
            write_json(folder / MANIFEST, manifest)
    return {job.key: folders[job.key] for job in jobs}


def _known_anew(job: SweepJob, keys: Set[str]) -> SweepJob:
    """Return a job under the key that its config has now, if that is one of `keys`; else return it unchanged.

    An earlier version of the code may have computed the key from other settings.
    """
    if job.key in keys or not (job.folder / CONFIG_FILE).is_file():
        return job
    config = read_config(job.folder)
    key = job_key(config)
    return replace(job, key=key, training_key=training_key(config)) if key in keys else job


def _superseded(
    known: Sequence[SweepJob], added: Sequence[ComposedJob], launched: Sequence[ComposedJob]
) -> set[tuple[str, str | None, str | None]]:
    """Return the lines of jobs that never began to train and that new jobs with other settings replace in a table.

    A job that did begin to train raises InputError. Jobs outside of experiments have no place in a table. Jobs of this
    launch may share a place: that is intended.
    """
    keys = {job.key for job in launched}
    places = {_place(job.experiment, job.content): job for job in added if job.experiment is not None}
    forgotten, problems = set(), []
    for old in known:
        place = (old.experiment, old.row, old.fold, old.seed, old.data)
        if old.key in keys or place not in places:
            continue
        if not has_begun(old.folder):
            forgotten.add(_line_of(old))
            continue
        difference = next(_differences(read_config(old.folder), places[place].content), "another configuration")
        problems.append(f"{old.folder.name}: {difference}")
    raise_problems(
        problems, "Started jobs of this sweep have other settings; give the new ones a name=TEXT of their own:"
    )
    return forgotten


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*new, *old]):
        path, before, now = f"{prefix}{key}", old.get(key), new.get(key)
        if path in WITHOUT_EFFECT or before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{path}.")
        else:
            yield f"{path}={now}: the job has {before}"


def _folder_name(job: ComposedJob) -> str:
    """Return a readable name such as s90-fold0-seed0-3fa9c2d1; the start of the key, at its end, identifies the job."""
    parts = [job.content.get("row"), *(_spelled(text) for text in job.varied)]
    parts += [f"fold{job.content['fold']}", f"seed{job.content['seed']}"]
    return "-".join([*filter(None, parts)])[:LONGEST_LABEL] + f"-{job.key[:SHORT]}"


def _spelled(override: str) -> str:
    """Spell dsff.density=0.1 as density_0.1, without characters that are special to a shell or to Hydra."""
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.]+", "_", f"{key.rsplit('.', 1)[-1]}_{value}").strip("_")


def _place(experiment: str | None, content: Mapping[str, Any]) -> tuple[Any, ...]:
    return (experiment, content.get("row"), content["fold"], content["seed"], content["data"]["name"])


def _line_of(job: SweepJob) -> tuple[str, str | None, str | None]:
    return (job.key, job.experiment, job.row)


def _composed_line(job: ComposedJob, folder: Path) -> dict[str, Any]:
    content = job.content
    overrides = tuple(text.lstrip("+") for text in job.overrides)
    return _manifest_line(
        SweepJob(
            key=job.key,
            folder=folder,
            experiment=job.experiment,
            row=content.get("row"),
            fold=content["fold"],
            seed=content["seed"],
            data=content["data"]["name"],
            overrides=overrides,
            training_key=job.training_key,
        )
    )


def _manifest_line(job: SweepJob) -> dict[str, Any]:
    return {
        "key": job.key,
        "folder": job.folder.name,
        "experiment": job.experiment,
        "row": job.row,
        "fold": job.fold,
        "seed": job.seed,
        "data": job.data,
        "overrides": list(job.overrides),
        "training_key": job.training_key,
    }
