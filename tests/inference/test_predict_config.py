"""The config of e2enet predict: valid configs, and all mistakes reported at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from e2enet.common.configs import explained_keys
from e2enet.common.errors import InputError
from e2enet.inference.config import CHECKS, PredictConfig, check_arguments, read_config

CONFIG_FOLDER = str(Path(__file__).parents[2] / "conf")
GIVEN = ["checkpoint=run", "input=scans", "output=out"]


def composed(*overrides: str) -> PredictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return read_config(compose("predict", list(overrides)))


def test_defaults_of_the_file_are_those_of_the_code():
    assert composed(*GIVEN) == PredictConfig((Path("run"),), Path("scans"), Path("out"))
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        assert set(compose("predict")) == set(CHECKS)


def test_help_explains_every_key():
    explained = re.findall(r"^(\w+): .*# \S", explained_keys("predict"), re.MULTILINE)
    assert sorted(explained) == sorted(CHECKS)


def test_every_key_is_read():
    config = composed(
        "checkpoint=[a,b]", "input=i", "output=o", "overlay=true", "probabilities=true", "viewer=true",
        "overwrite=true", "mirror=false", "step=0.25", "batch_size=4", "device=cuda:1", "precision=16", "engine=dense",
        "trust=[a.B]",
    )  # fmt: skip
    assert config == PredictConfig(
        *((Path("a"), Path("b")), Path("i"), Path("o"), True, True, True, True, False, 0.25, 4, "cuda:1", "16"),
        engine="dense",
        trust=("a.B",),
    )


@pytest.mark.parametrize(
    "override",
    [
        *(
            "step=0",
            "step=1.5",
            "step=half",
            "batch_size=0",
            "batch_size=1.5",
            "device=gpu",
            "precision=64",
            "engine=fast",
        ),
        *("engine=fast", "mirror=1", "overlay=maybe", "checkpoint=[]", "input=null"),
    ],
)
def test_impossible_values(override):
    with pytest.raises(InputError, match=override.split("=")[0] + "=.*expected"):
        composed(*GIVEN, override)


def test_missing_keys_and_wrong_values_are_listed_together():
    with pytest.raises(InputError) as raised:
        composed("step=2", "device=tpu")
    message = str(raised.value)
    for expected in (
        "checkpoint: not given",
        "input: not given",
        "output: not given",
        "step=2",
        "device=tpu",
    ):
        assert expected in message


def test_unknown_keys_are_listed_with_wrong_values():
    arguments = [*GIVEN, "overlap=0.5", "+extra=1", "step=3", "--cfg", "hydra.verbose=true"]
    with pytest.raises(InputError) as raised:
        check_arguments(arguments, CONFIG_FOLDER)
    message = str(raised.value)
    assert "overlap: no such key; allowed are checkpoint, input, output" in message
    assert "extra: no such key" in message
    assert "step=3: expected a number above 0 and up to 1" in message


def test_a_path_that_hydra_cannot_parse():
    with pytest.raises(InputError, match=r"= in the value of checkpoint must be quoted; write"):
        check_arguments([*GIVEN[1:], "checkpoint=epoch=3.ckpt"], CONFIG_FOLDER)


def test_sound_arguments_pass():
    check_arguments([*GIVEN, "hydra/job_logging=none", "-m", "step=0.5,1.0", "--help"], CONFIG_FOLDER)
