"""Export a trained model: e2enet export RUN --to bundle|onnx|torch|card [--output FOLDER]"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from e2enet.common.console import say
from e2enet.common.errors import exit_on_input_error
from e2enet.common.files import atomic_path, require_new_folder


class Target(NamedTuple):
    """A kind of export.

    `write` names a function (model: LoadedModel, folder: Path) that fills the new folder; `summary` says what it holds.
    """

    write: str
    summary: str


TARGETS = {
    "bundle": Target("e2enet.export.bundle:write_bundle", "a MONAI bundle, which python -m monai.bundle run executes"),
    "onnx": Target("e2enet.export.onnx_model:write_onnx", "model.onnx, and a script that predicts scans without torch"),
    "torch": Target("e2enet.export.torch_program:write_torch", "model.pt2 (torch.export), which torch alone loads"),
    "card": Target("e2enet.export.card:write_card", "compact.ckpt with a model card, to share a trained model"),
}
DESCRIPTION = """\
Hands a trained model to other tools: as a folder that holds the network with its weights, and all that is needed to
prepare a scan for it and to read its result.

RUN is the folder of a run (its checkpoints/best.ckpt is taken), a checkpoint file, compact.ckpt too, or the folder of a
fold that nnU-Net trained with E2ENet.
"""
EPILOG = """\
Exit code: 0 written, 2 wrong input (nothing is written).

Examples:
  e2enet export runs/spleen --to bundle --output spleen_bundle
  e2enet export runs/spleen/checkpoints/compact.ckpt --to onnx
"""


@exit_on_input_error("stopped; nothing was written")
def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model named on the command line and write it in the form that was asked for."""
    given = _parser().parse_args(arguments)
    output = given.output or Path(f"{_name(given.run)}-{given.to}")
    require_new_folder(output, f"--output {output}")
    # These import torch. First the target: a package that it lacks is told before the model is read.
    write = pkgutil.resolve_name(TARGETS[given.to].write)
    from e2enet.inference.checkpoint import load_model
    from e2enet.network.build import trust_network

    for name in given.trust:
        trust_network(name)
    model = load_model(given.run)
    say(f"{model.path}: exporting to {given.to} ..")
    with atomic_path(output) as folder:
        folder.mkdir()
        write(model, folder)
    say(f"written: {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def _name(run: Path) -> str:
    """Return a run's name: that of its folder, also for RUN/checkpoints/best.ckpt."""
    path = run.absolute()
    if path.suffix in (".ckpt", ".pth"):
        path = path.parent.parent if path.parent.name == "checkpoints" else path.with_suffix("")
    return path.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2enet export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a run, or a checkpoint")
    kinds = "; ".join(f"{name}: {target.summary}" for name, target in TARGETS.items())
    add("--to", metavar="TARGET", choices=TARGETS, required=True, help=kinds)
    add("--output", metavar="FOLDER", type=Path, help="the new folder (default: NAME_OF_RUN-TARGET)")
    add(
        "--trust",
        metavar="CLASS",
        action="append",
        default=[],
        help="a network outside of e2enet that the checkpoint may name (may be repeated)",
    )
    return parser


if __name__ == "__main__":
    main()
