"""Command that plans and prepares a dataset: e2enet prepare data=NAME paths.data=DIR."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path

from e2enet.common.console import say
from e2enet.common.errors import exit_on_input_error
from e2enet.data.command import build_datamodule, compose_data, show_help
from e2enet.data.planning.plan_file import PLAN_FILE
from e2enet.data.preparation.store import CaseStore
from e2enet.system.workload import gigabytes

HELP = """\
usage: e2enet prepare data=NAME paths.data=DIR [KEY=VALUE ..]

Reads every training case once for the fingerprint, plans (plan=auto or plan=paper, and the keys of plan), and writes
each case cropped, normalised and resampled below paths.prepared, where e2enet train finds it. Finished cases are kept:
a run that was stopped is resumed, and a changed file is prepared again. A plan.json that was edited is used. The disk
and memory that it needs are told before it starts; if they do not fit, it does not start. Without training=, the plan
is that of training=paper, which leaves everything to the rules.

example: e2enet prepare data=msd data.name=Task04_Hippocampus paths.data=FOLDER plan.batch_size=4
"""
# e2enet train's default, the preset for quick looks, fixes a small patch. Here the plan should follow from the data.
PLANNED_BY_RULES = "training=paper"
MAX_NAMES = 10


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the cases of every fold of the dataset named on the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_help(arguments, HELP, {})
    if not any(argument.startswith("training=") for argument in arguments):
        arguments = [PLANNED_BY_RULES, *arguments]
    config = compose_data(arguments).config
    config.fold = "every"
    data = build_datamodule(config)
    data.prepare_data()
    print_result(CaseStore.of(data.prepared_folder, data.dataset, data.plan))


def print_result(store: CaseStore) -> None:
    """Print a short plan, the paths of plan and cases, and prepared cases that are no longer used."""
    plan = store.plan.to_dict()
    lines = [f"{name}: {plan[name]}" for name in ("spacing", "median_shape", "patch_size", "strides", "batch_size")]
    lines += [f"plan: {store.folder.parent / PLAN_FILE}", f"cases: {store.folder}", *find_leftovers(store)]
    for line in lines:
        say(line)


def find_leftovers(store: CaseStore) -> list[str]:
    """Return a line about prepared cases without a raw case, and a line about cases prepared for other plans or labels.

    Nothing is deleted, since another plan or a moved folder may still use them.
    """
    dataset = store.dataset
    known = {case.id for case in (*dataset.training, *dataset.validation, *dataset.test)}
    orphans = sorted(store.stored_ids() - known)
    others = sorted(path for path in store.folder.parent.glob("cases_*") if path != store.folder)
    lines = []
    if orphans:
        size = _size(path for name in orphans for path in store.folder.glob(f"{escape(name)}.*"))
        named = ", ".join(orphans[:MAX_NAMES]) + f" and {len(orphans) - MAX_NAMES} more" * (len(orphans) > MAX_NAMES)
        lines.append(f"no raw case any more, not used, may be deleted: {named} ({size} in {store.folder})")
    if others:
        size = _size(path for folder in others for path in folder.iterdir())
        lines.append(
            f"prepared for other plans or labels, may be deleted: {', '.join(path.name for path in others)} ({size})"
        )
    return lines


def _size(paths: Iterable[Path]) -> str:
    return gigabytes(sum(path.stat().st_size for path in paths if path.is_file()))


if __name__ == "__main__":
    main()
