"""job.json: the state of a job, written by the process that launches it and holds its folder."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from e2enet.common.files import read_json, write_json
from e2enet.runs.folders import JOB_FILE, JobError, State, job_state

OUTCOME_FILE = "outcome.json"  # written by the job's processes: see `inside`


def record_start(folder: Path, key: str) -> None:
    """Record a new attempt; the seconds of earlier ones are kept. The caller holds the folder."""
    before = job_state(folder, held=False)  # held by the caller only
    write_json(
        folder / JOB_FILE,
        {
            "key": key,
            "state": "running",
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "ended": None,
            "seconds": before.seconds,
            "attempts": before.attempts + 1,
            "host": platform.node(),
            "pid": os.getpid(),
            "score": None,
            "error": None,
        },
    )


def record_end(folder: Path, state: State, *, score: float | None = None, error: JobError | None = None) -> None:
    """Record how the attempt ended and add the seconds that it took."""
    content = read_json(folder / JOB_FILE)
    now = datetime.now(timezone.utc)
    content |= {
        "state": state,
        "ended": now.isoformat(timespec="seconds"),
        "seconds": content["seconds"] + (now - datetime.fromisoformat(content["started"])).total_seconds(),
        "score": score,
        "error": None if error is None else {"message": error.message, "traceback": error.traceback},
    }
    write_json(folder / JOB_FILE, content)


def read_outcome(folder: Path) -> dict[str, Any]:
    """Read and remove the outcome that the job's processes reported; {} if they died before."""
    path = folder / OUTCOME_FILE
    if not path.is_file():
        return {}
    content = read_json(path)
    path.unlink()
    return dict(content)
