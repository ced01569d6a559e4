"""Resuming a job of a sweep by hand: its folder stays that of the job that the sweep lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError
from e2enet.runs.folders import JOB_FILE, MANIFEST
from e2enet.runs.job_key import job_key


def refuse_another_job(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse changes by which a folder would be that of another job; in a folder of no job nothing is refused.

    The sweep would count it as finished, with the score of the settings before.

    Args:
        folder: That is resumed.
        before: Its stored config, in plain containers.
        now: The config with the changes.

    Raises:
        InputError: the config has another job key.
    """
    if (folder / JOB_FILE).is_file() and job_key(before) != job_key(now):
        raise InputError(
            f"resume={folder}: is a job of a sweep ({folder.parent / MANIFEST}), and with these settings would be "
            "another job; give them to the sweep's own command line with a name=TEXT of its own, or resume a copy of "
            f"the folder without its {JOB_FILE}"
        )
