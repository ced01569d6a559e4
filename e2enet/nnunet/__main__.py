"""E2ENet in nnU-Net: e2enet nnunet trainers | plans | convert .."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError, exit_on_input_error, first_line

DESCRIPTION = """\
E2ENet with DSFF in nnU-Net v2 (pip install nnunetv2==2.8.1).
"""
EPILOG = """\
Exit code: 0 done, 2 wrong input.

Examples:
  export nnUNet_extTrainer=$(e2enet nnunet trainers)
  e2enet nnunet plans 4 dsff.density=0.1
  nnUNetv2_preprocess -d 4 -plans_name nnUNetE2ENetPlans -c 3d_fullres
  nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerE2ENet -p nnUNetE2ENetPlans
  e2enet nnunet convert runs/hippocampus models/hippocampus
"""


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    given = make_parser().parse_args(arguments)
    given.run(given)


def print_trainers(given: argparse.Namespace) -> None:
    """Print the folder for nnU-Net's environment variable nnUNet_extTrainer, and nothing else."""
    print(Path(__file__).resolve().parent / "trainers")


def write_plans(given: argparse.Namespace) -> None:
    """Write plans for E2ENet, and say how to go on."""
    from e2enet.common.console import say

    dsff = compose_dsff(given.settings)  # before nnU-Net, which takes seconds to import
    training = {
        key: value
        for key, value in (("epochs", given.epochs), ("iterations_per_epoch", given.iterations))
        if value is not None
    }
    require_nnunet()
    from e2enet.nnunet.plans import plan_dataset

    path = plan_dataset(
        given.dataset,
        memory_gb=given.gpu_memory,
        plans_name=given.name,
        base_features=given.base_features,
        dsff=dsff,
        training=training,
        processes=given.processes,
    )
    number = int(path.parent.name[7:10])
    say(f"written: {path}")
    say(f"next: nnUNetv2_preprocess -d {number} -plans_name {given.name} -c 3d_fullres")
    say("      export nnUNet_extTrainer=$(e2enet nnunet trainers)")
    say(f"      nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerE2ENet -p {given.name}")


def convert(given: argparse.Namespace) -> None:
    """Convert a checkpoint of nnU-Net (.pth) to one of train.py, or those of train.py to a model folder of nnU-Net."""
    from e2enet.common.console import say
    from e2enet.nnunet.export import export_to_nnunet, import_from_nnunet

    *sources, target = given.paths
    if not sources:
        raise InputError("convert: at least one checkpoint and the place to write to expected")
    if any(source.suffix == ".pth" for source in sources):
        if len(sources) > 1:
            raise InputError("convert: one checkpoint of nnU-Net at a time expected")
        say(f"written: {import_from_nnunet(sources[0], target)}")
        return
    folder = export_to_nnunet(sources, target)
    say(f"written: {folder}")
    folds = " ".join(map(str, range(len(sources))))
    say(f"next: nnUNetv2_predict_from_modelfolder -i INPUT -o OUTPUT -m {folder} -f {folds}")


def compose_dsff(settings: Sequence[str]) -> dict[str, Any]:
    """Return the section `dsff` that train.py would have with `dsff=NAME` and `dsff.KEY=VALUE`.

    Raises:
        InputError: for other settings, unknown keys and wrong values.
    """
    from hydra.errors import HydraException

    from e2enet.common.configs import as_plain, compose_config
    from e2enet.nnunet.settings import SECTION, dsff_settings

    others = [text for text in settings if not text.startswith(("dsff=", "dsff."))]
    if others:
        raise InputError(f"{', '.join(others)}: dsff=NAME or dsff.KEY=VALUE expected")
    try:
        section = as_plain(compose_config(list(settings)).dsff)
    except HydraException as error:
        raise InputError(f"{' '.join(settings)}: {first_line(error)}") from error
    section.pop("_target_", None)
    if section["density_by_dim0"]:
        section["density_by_dim0"] = {str(dim0): share for dim0, share in section["density_by_dim0"].items()}
    dsff_settings({SECTION: section}, "plans")
    return section


def require_nnunet() -> None:
    """Raise InputError if nnU-Net is not installed, or cannot be imported."""
    try:
        import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # noqa: F401 - needs timm too
    except ImportError as error:
        raise InputError(
            f'nnU-Net cannot be imported ({first_line(error)}): pip install "e2enet[nnunet]" expected'
        ) from error


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `run` is what to do."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="e2enet nnunet", description=DESCRIPTION, epilog=EPILOG, formatter_class=form)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = commands.add_parser
    trainers = add("trainers", help="print the folder for nnUNet_extTrainer", description=print_trainers.__doc__)
    trainers.set_defaults(run=print_trainers)
    plans = add("plans", help="write plans for E2ENet's memory", description=write_plans.__doc__)
    plans.set_defaults(run=write_plans)
    option = plans.add_argument
    option("dataset", metavar="FOLDER", help="the dataset's folder in nnUNet_raw or nnUNet_preprocessed, or its number")
    option("settings", metavar="dsff..=VALUE", nargs="*", help="DSFF as in train.py: dsff=rigl dsff.density=0.1")
    option("--gpu-memory", metavar="GB", type=_positive(float), default=8.0, help="to plan for (default: %(default)s)")
    option("--name", metavar="NAME", default="nnUNetE2ENetPlans", help="of the plans file (default: %(default)s)")
    option(
        "--base-features",
        metavar="N",
        type=_positive(int),
        default=48,
        help="channels at full resolution (default: %(default)s, the paper's)",
    )
    option("--epochs", metavar="N", type=_positive(int), help="of the training (default: nnU-Net's 1000)")
    option("--iterations", metavar="N", type=_positive(int), help="steps of an epoch (default: nnU-Net's 250)")
    option(
        "--processes",
        metavar="N",
        type=_positive(int),
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        help="that read the scans for a missing fingerprint (default: as many as cores)",
    )
    conversion = add("convert", help="convert checkpoints, both ways", description=convert.__doc__)
    conversion.set_defaults(run=convert)
    conversion.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        type=Path,
        help="checkpoints or run folders, then a free folder; or nnU-Net's .pth file, then a free .ckpt",
    )
    return parser


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text}: a number > 0 expected")
        return value

    return number


if __name__ == "__main__":
    main()
