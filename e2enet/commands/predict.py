"""Segment scans with trained models: e2enet predict checkpoint=RUN input=FILE_OR_FOLDER output=FOLDER.

Under torchrun or srun several processes share the cases. `--help` prints the keys and what they may be.
Exit codes: 0 done, 1 some case failed, 2 wrong input.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from e2enet.common.configs import CONFIGS, explained_keys
from e2enet.common.console import flush_every_line
from e2enet.common.errors import ExitCode, exit_on_input_error
from e2enet.inference.config import check_arguments, read_arguments, read_config
from e2enet.system.ranks import quiet_unless_rank_zero

HELP = """\
usage: e2enet predict checkpoint=RUN_FOLDER input=FILE_OR_FOLDER output=FOLDER [KEY=VALUE ..]

Segments scans on their own grid. With a sweep's folder as checkpoint, its folds are averaged. The keys, their defaults,
and what they may be:
"""


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="predict")
def predict(config: DictConfig) -> None:
    """Check the config, predict the cases, exit with 1 where one failed."""
    with exit_on_input_error():
        settings = read_config(config)
        # Imported here, so that --help and a wrong key do not wait for the frameworks.
        from e2enet.inference.run import run_prediction
        from e2enet.system.memory import keep_freed_memory

        keep_freed_memory()
        view = None
        if settings.viewer:
            from e2enet.view.predicted import FOLDER, view_predicted
            from e2enet.view.write import require_viewer_folder

            require_viewer_folder(settings.output / FOLDER)
            view = view_predicted
        failures = run_prediction(settings, view)
    if failures:
        sys.exit(ExitCode.UNFINISHED)


def main() -> None:
    """Check the whole command line first, then predict."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(f"{HELP}\n{explained_keys('predict')}")
        return
    flush_every_line()
    quiet_unless_rank_zero()
    with exit_on_input_error():
        sys.argv[1:] = read_arguments(sys.argv[1:])
        check_arguments(sys.argv[1:], str(CONFIGS))
    predict()


if __name__ == "__main__":
    main()
