"""Train a network on a dataset, then predict and score its validation cases: python train.py [overrides].

The keys and what they may be: conf/config.yaml and the groups beside it. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from e2enet.common.configs import register_resolvers
from e2enet.common.console import flush_every_line
from e2enet.common.errors import exit_on_input_error


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def train(config: DictConfig) -> float:
    """Run one job; the mean validation Dice, for sweepers."""
    with exit_on_input_error():
        from e2enet.common.memory import keep_freed_memory
        from e2enet.report.figures import draw_figures
        from e2enet.training.resume import resumed_config
        from e2enet.training.run import run_training

        keep_freed_memory()
        if config.resume is not None:
            config = resumed_config(config, HydraConfig.get().overrides.task)
        result = run_training(config, Path(HydraConfig.get().runtime.output_dir))
        draw_figures(result.folder)
        return result.dice


def main() -> None:
    """Check the whole command line first, so that neither a run nor a sweep starts with a mistake in it."""
    arguments = sys.argv[1:]
    os.environ["E2ENET_ROOT"] = str(Path(__file__).resolve().parent)  # anchors experiments/ in conf/config.yaml
    flush_every_line()
    register_resolvers()
    if not any(flag in arguments for flag in ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i")):
        from e2enet.training.config_check import check_command_line, force_added

        with exit_on_input_error():
            check_command_line(arguments)
        sys.argv[1:] = force_added(arguments)
    train()


if __name__ == "__main__":
    main()
