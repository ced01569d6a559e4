"""The sections `dsff` and `training` of nnU-Net's plans."""

from __future__ import annotations

from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.network import DSFF
from e2enet.nnunet.settings import TrainingLength, dsff_settings, read_dsff, read_length


def test_without_a_section_dsff_is_the_papers() -> None:
    found, paper = read_dsff({}, "3d_fullres"), DSFF()
    assert found is not None
    assert (found.density, found.update_every, found.growth) == (0.2, 1200, "random")
    assert {key: value for key, value in vars(found).items() if key[0] != "_"} == {
        key: value for key, value in vars(paper).items() if key[0] != "_"
    }


def test_a_section_says_otherwise() -> None:
    section = {"density": 0.1, "growth": "gradient", "update_until": 0.75, "density_by_dim0": {"48": 0.2}}
    found = read_dsff({"dsff": section}, "3d_fullres")
    assert found is not None
    assert (found.density, found.growth, found.update_until, found.density_by_dim0) == (
        0.1,
        "gradient",
        0.75,
        {48: 0.2},
    )
    assert read_dsff({"dsff": {"enabled": False}}, "3d_fullres") is None
    assert dsff_settings({"dsff": section}, "3d_fullres")["update_every"] == 1200


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"densitty": 0.1}, r"3d_fullres.dsff of the plans:\n  - densitty: unknown; known are enabled, density"),
        ({"density": 0}, r"3d_fullres.dsff of the plans: .*density=0: expected a share"),
        ({"granularity": "row"}, r"granularity must be"),
        ({"density": "0.1"}, r"density='0.1': expected a share"),
        ({"enabled": 1}, r"enabled is 1: true or false expected"),
        ({"density_by_dim0": {"wide": 0.2}}, r"density_by_dim0 is \{'wide': 0.2\}: whole numbers as keys"),
        (False, r"3d_fullres.dsff of the plans is False: an object expected"),
        ([0.2], r"3d_fullres.dsff of the plans is \[0.2\]: an object expected"),
    ],
)
def test_what_is_wrong_is_named(section: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_dsff({"dsff": section}, "3d_fullres")


def test_training_is_as_long_as_nnunets_unless_said() -> None:
    assert read_length({}, "3d_fullres") == TrainingLength(1000, 250, 50)
    assert read_length({"training": {"epochs": 5}}, "3d_fullres") == TrainingLength(5, 250, 50)
    with pytest.raises(InputError, match=r"(?s)epochs is 0: .*\n.*iterations_per_epoch is 2.5: a whole number >= 1"):
        read_length({"training": {"epochs": 0, "iterations_per_epoch": 2.5}}, "3d_fullres")
