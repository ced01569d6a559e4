"""After training: predict cases on their native grid with the best checkpoint and score the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from e2enet.common.console import console
from e2enet.common.errors import raise_problems
from e2enet.data.formats.layout import Case
from e2enet.evaluation import score_files, scores_table, write_scores
from e2enet.inference.checkpoint import LoadedModel, load_model
from e2enet.inference.predictor import WindowSettings, predict_cases
from e2enet.inference.run import AMP_TYPES, resolve_device
from e2enet.network.engine import select_validation
from e2enet.system.ranks import SINGLE_PROCESS, Team
from e2enet.training.compact import find_origin
from e2enet.training.engine_choice import chosen_engine
from e2enet.training.parts import FinalSettings, RunParts

# Training precision -> its name in e2enet.inference. A checkpoint's weights are loaded as float32.
PRECISIONS = {
    **dict.fromkeys(("32", "32-true", "64", "64-true"), "32"),
    **{"bf16-mixed": "bf16", "16-mixed": "16"},
}


def score_run(
    parts: RunParts,
    run_folder: Path,
    checkpoint: Path,
    validation: Sequence[Case],
    test: Sequence[Case],
    team: Team = SINGLE_PROCESS,
) -> dict[str, Any] | None:
    """Predict and score the fold's validation cases and the labelled test cases; return the validation summary.

    All processes of a team predict. Then the first one scores; the others return None.

    Write RUN/validation/<case><file ending>, with the `.png` and `.npz` that `final` asks for, RUN/scores.csv and
    RUN/summary.json, and the same of the test cases to RUN/test. Print both tables. Each summary names the checkpoint
    that was scored.
    """
    device = resolve_device("cpu" if parts.trainer["accelerator"] == "cpu" else "auto")
    amp_dtype = AMP_TYPES[PRECISIONS[str(parts.training["precision"])]]
    final = parts.final
    settings = WindowSettings(mirror=final.mirror, step=final.step, device=device, amp_dtype=amp_dtype)
    model = load_model(checkpoint)
    engine = chosen_engine(parts.training, run_folder, device)
    network = select_validation(model.network.to(device), engine, amp_dtype=amp_dtype)
    model = replace(model, network=network)
    folder = run_folder / "validation"
    summary = _score(final, model, settings, validation, folder, run_folder, "Validation cases", team)
    labelled = [case for case in test if case.label is not None]
    if labelled:
        _score(final, model, settings, labelled, run_folder / "test", run_folder / "test", "Test cases", team)
    return summary


def _score(
    final: FinalSettings,
    model: LoadedModel,
    settings: WindowSettings,
    cases: Sequence[Case],
    predictions: Path,
    scores_folder: Path,
    title: str,
    team: Team,
) -> dict[str, Any] | None:
    """Predict into one folder, write the scores to another, print the table."""
    cases = cases[: final.max_cases]
    # Overwrite: files of an earlier end of a resumed run come from other weights.
    failures = predict_cases(
        [model],
        cases,
        predictions,
        settings,
        overlay=final.overlay,
        probabilities=final.probabilities,
        overwrite=True,
        file_ending=model.file_ending,
        team=team,
    )
    raise_problems([f"{case}: {reason}" for case, reason in failures.items()], f"{title} that cannot be predicted:")
    if team.rank != 0:
        return None
    pairs = {case.id: (predictions / f"{case.id}{model.file_ending}", case.label) for case in cases if case.label}
    scores, summary = score_files(
        pairs,
        model.scheme,
        nsd_tolerance=final.nsd_tolerance,
        label_map=model.label_map,
        regions=model.regions,
        unit=model.spacing_unit,
    )
    origin = find_origin(model.path)
    summary |= {"checkpoint": asdict(origin)} if origin else {}
    write_scores(scores_folder, scores, summary)
    console.print(scores_table(summary, title=title))
    return summary
