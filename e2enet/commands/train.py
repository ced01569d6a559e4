"""Train a network on a dataset, then predict and score its validation cases: e2enet train [overrides].

With -m, a sweep: every combination of the values, each in its own processes (docs/sweeps.md). `--help` prints the
keys, and says where their files tell what they may be. Exit codes: 0 done, 1 jobs of a sweep crashed, 2 wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from e2enet.common.configs import CONFIGS, choose_source, make_paths_absolute, register_configs
from e2enet.common.console import flush_every_line
from e2enet.common.errors import InputError, exit_on_input_error
from e2enet.common.overrides import force_added, is_multirun, source_of
from e2enet.common.whole_mappings import replacing
from e2enet.runs.rows import compose_job
from e2enet.sweeps.inside import exit_with_launcher, is_job, report_score, reporting_errors, run_held
from e2enet.system.ranks import is_rank_zero, quiet_unless_rank_zero

QUESTIONS = ("--help", "-h", "--hydra-help", "--info", "-i")
PRINTING = ("--cfg", "-c")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def train(config: DictConfig) -> float | None:
    """Run one job; its mean validation Dice, or `optimized_metric`, for sweepers (None: a job without score)."""
    # Imported here, as in `main` and `run`, so that --help does not wait for the frameworks.
    from e2enet.runs.folders import CONFIG_FILE
    from e2enet.sweeps.job import run_job
    from e2enet.training.resume import resumed_config
    from e2enet.training.stopping import is_restarted

    register_configs()  # this may be a process of a launcher, which knows nothing of main
    given, output = HydraConfig.get().overrides.task, Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(given, output)  # what it raises is of this job: exiting would end the sweep
    with exit_on_input_error("stopped"), reporting_errors():
        make_paths_absolute(config)
        if config.resume is None and config.row is not None:
            config = compose_job(given).config
            config.run_folder = str(output)  # it may hold the time, which has moved on
        if config.resume is None and is_restarted() and (output / CONFIG_FILE).is_file():
            config.resume = str(output)
        if config.resume is not None:
            config = resumed_config(config, given)
        return run(config, output)


def run(config: DictConfig, folder: Path) -> float:
    """Train with a checked config in this process, which holds the folder: a run is never written to by two."""
    from e2enet.report.figures import draw_figures
    from e2enet.system.memory import keep_freed_memory
    from e2enet.training.loggers import last_logged
    from e2enet.training.run import run_training
    from e2enet.training.run_folder import how_to_go_on
    from e2enet.training.stopping import requeued_at_once

    keep_freed_memory()
    try:
        with run_held(folder), requeued_at_once():
            result = run_training(config, folder)
            if is_rank_zero():
                draw_figures(result.folder)
            score = result.dice if config.optimized_metric is None else last_logged(folder, config.optimized_metric)
            report_score(score)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or how_to_go_on(folder)) from stop
    return score


def main() -> None:
    """Check the whole command line first, so that neither a run nor a sweep starts with a mistake in it."""
    arguments = sys.argv[1:]
    exit_with_launcher()
    flush_every_line()
    quiet_unless_rank_zero()
    register_configs()
    with exit_on_input_error("stopped; nothing was begun"), reporting_errors():
        if not _has(arguments, QUESTIONS):
            from e2enet.configuration.check import check_command_line, read_arguments
            from e2enet.sweeps.launch import launch_sweep
            from e2enet.training.run_folder import with_own_folder

            if not is_job():  # a job has the configs of its sweep, which it inherits
                choose_source(source_of(arguments))
            arguments, printed = read_arguments(arguments), _has(arguments, PRINTING)
            check_command_line(arguments, printed=printed)
            if is_multirun(arguments) and printed:
                raise InputError("--cfg prints the config of one run: leave out -m")
            if is_multirun(arguments):
                sys.exit(launch_sweep(arguments, train))
            arguments = arguments if printed else with_own_folder(arguments)
            # Hydra's log file is the first process's too.
            sys.argv[1:] = [
                *replacing(force_added(arguments)),
                *([] if is_rank_zero() else ["hydra/job_logging=stdout"]),
            ]
        train()


def _has(arguments: Sequence[str], flags: Sequence[str]) -> bool:
    return any(argument.partition("=")[0] in flags for argument in arguments)


if __name__ == "__main__":
    main()
