"""Mappings on a command line replace those of the config, in a run, a sweep and Python alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from e2enet.common.configs import ROOT, as_plain, compose_config
from e2enet.configuration.check import read_arguments
from e2enet.data.command import compose_data
from e2enet.runs.rows import compose_job
from e2enet.sweeps.command_line import plan_sweep

KITS = ["data=kits", "data.labels={0:background,1:kidney}", "data.label_map={2:1,3:1}", "data.regions={all: [1]}"]
READ = ({0: "background", 1: "kidney"}, {2: 1, 3: 1}, {"all": [1]})


def mappings(content: object) -> tuple[object, ...]:
    data = as_plain(OmegaConf.select(content, "data"))
    return data["labels"], data["label_map"], data["regions"]


@pytest.mark.parametrize("mark", ["", "+", "++"])
def test_labels_are_those_of_the_command_line_alone(mark: str) -> None:
    given = [KITS[0], *(f"{mark}{text}" for text in KITS[1:])]
    assert mappings(compose_config(given)) == mappings(compose_data(given).config) == READ
    assert mappings(compose_job(read_arguments(given)).config) == READ


def test_removing_first_works_too() -> None:
    removed = [text for name in KITS[1:] for text in (f"~{name.partition('=')[0]}", f"+{name}")]
    assert mappings(compose_config([KITS[0], *removed])) == READ
    assert mappings(compose_config(["data=kits", "data.regions={}"]))[2] == {}


def test_later_overrides_change_the_new_mapping() -> None:
    assert mappings(compose_config([*KITS, "++data.regions.more=[1]"]))[2] == {"all": [1], "more": [1]}
    assert mappings(compose_config([*KITS, "data.labels={0:background,1:masses}"]))[0] == {0: "background", 1: "masses"}


def test_channels_and_folders_of_a_layout() -> None:
    given = ["data=brats_2021", "data.layout.channels={FLAIR: flair, T2w: t2}", "data.layout.folders={training: a}"]
    layout = as_plain(compose_config([given[0], given[1], f"++{given[2]}"]).data)["layout"]
    assert layout["channels"] == {"FLAIR": "flair", "T2w": "t2"} and layout["folders"] == {"training": "a"}


def test_other_mappings_are_merged_as_hydra_does() -> None:
    optimizer = as_plain(compose_config(["optimizer={lr: 0.5}"]).optimizer)
    assert optimizer["lr"] == 0.5 and "weight_decay" in optimizer


def test_every_job_of_a_sweep(tmp_path: Path) -> None:
    labels = "data.labels={0:background,1:kidney},{0:background,1:mass}"
    jobs = plan_sweep(read_arguments(["-m", KITS[0], labels, *KITS[2:], f"run_folder={tmp_path}/sweep"])).jobs
    assert [mappings(job.config) for job in jobs] == [READ, ({0: "background", 1: "mass"}, *READ[1:])]
    assert [job.varied for job in jobs] == [
        ("data.labels={0:background,1:kidney}",),
        ("data.labels={0:background,1:mass}",),
    ]


def test_a_run_composed_by_hydra_itself() -> None:
    command = [sys.executable, "train.py", "--cfg", "job", *KITS]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert mappings(OmegaConf.create(printed)) == READ
