"""Write a look-alike of a public dataset: python -m e2enet.data.synthetic NAME FOLDER [--cases N] [--seed S]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.console import say
from e2enet.common.errors import exit_on_input_error
from e2enet.data.synthetic.lookalikes import LOOKALIKES

DESCRIPTION = """\
Write a small look-alike of a public dataset below FOLDER, in the layout, with the names, label values, data types
and orientations of the download, but with drawn scans. It shows what a folder must look like, and lets you try
every command before you have the data.
"""
# The overrides that train on each look-alike.
CONFIGS = {
    "amos": "data=amos_ct",
    "btcv": "data=btcv",
    "brats": "data=brats",
    "brats_cases": "data=brats_2021",
    "brats_2023": "data=brats_2023",
    "kits": "data=kits",
    "acdc": "data=acdc",
    "msd": "data=msd data.name=Task05_Prostate",
    "nnunet": "data=nnunet data.name=Dataset005_Prostate",
}


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the look-alike that the command line names, and print the command that trains on it."""
    examples = "\n".join(f"  {name:12} e2enet train {config} paths.data=FOLDER" for name, config in CONFIGS.items())
    parser = argparse.ArgumentParser(
        prog="python -m e2enet.data.synthetic",
        description=DESCRIPTION,
        epilog=f"names, and how each is trained on:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(LOOKALIKES), help="the dataset")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="parent folder of raw datasets (paths.data)")
    parser.add_argument("--cases", type=int, default=5, help="labelled training cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="every voxel follows from it (default: %(default)s)")
    options = parser.parse_args(arguments)
    write, folder_name = LOOKALIKES[options.name]
    written = write(options.folder / folder_name, options.cases, options.seed)
    command = f"e2enet train {CONFIGS[options.name]} paths.data={options.folder}"
    say(f"written: {written}\ntrain on it: {command}")


if __name__ == "__main__":
    main()
