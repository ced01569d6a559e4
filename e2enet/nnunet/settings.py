"""The sections `dsff` and `training` of a configuration in nnU-Net's plans: DSFF, and the length of training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2enet.common.errors import InputError, raise_problems
from e2enet.network import DSFF

SECTION, TRAINING = "dsff", "training"
# The settings, as in conf/dsff, with their defaults: the paper's DSFF.
DEFAULTS: dict[str, Any] = {"enabled": True} | {
    name: parameter.default for name, parameter in inspect.signature(DSFF).parameters.items()
}


@dataclass(frozen=True)
class TrainingLength:
    """How long nnU-Net trains. The defaults are nnU-Net's own."""

    epochs: int = 1000
    iterations_per_epoch: int = 250
    validation_iterations_per_epoch: int = 50


def read_dsff(configuration: Mapping[str, Any], name: str) -> DSFF | None:
    """Return the DSFF that a configuration's section `dsff` describes; None if its `enabled` is false.

    Without the section it is the paper's, at a density of 0.2.

    Raises:
        InputError: lists every unknown key and wrong value; `name` is that of the configuration.
    """
    settings = dsff_settings(configuration, name)
    enabled = settings.pop("enabled")
    return DSFF(**settings) if enabled else None


def dsff_settings(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return all settings of a configuration's section `dsff`, defaults included.

    Raises:
        InputError: as `read_dsff`.
    """
    given = _section(configuration, SECTION, name, DEFAULTS)
    settings = DEFAULTS | given
    if not isinstance(settings["enabled"], bool):
        raise InputError(f"{name}.{SECTION}.enabled is {settings['enabled']!r}: true or false expected")
    shares = settings["density_by_dim0"]
    if isinstance(shares, Mapping):  # JSON's keys are text
        settings["density_by_dim0"] = {int(dim0): share for dim0, share in shares.items() if str(dim0).isdecimal()}
        if len(settings["density_by_dim0"]) < len(shares):
            raise InputError(f"{name}.{SECTION}.density_by_dim0 is {dict(shares)}: whole numbers as keys expected")
    try:
        DSFF(**{key: value for key, value in settings.items() if key != "enabled"})
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{name}.{SECTION} of the plans: {error}") from error
    return settings


def read_length(configuration: Mapping[str, Any], name: str) -> TrainingLength:
    """Return the length of training in a configuration's section `training`; nnU-Net's without one.

    Raises:
        InputError: lists every unknown key and wrong value; `name` is that of the configuration.
    """
    given = _section(configuration, TRAINING, name, vars(TrainingLength()))
    wrong = [
        f"{key} is {value!r}: a whole number >= 1 expected"
        for key, value in given.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    raise_problems(wrong, f"{name}.{TRAINING} of the plans:")
    return TrainingLength(**given)


def _section(configuration: Mapping[str, Any], section: str, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    given = configuration.get(section)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"{name}.{section} of the plans is {given!r}: an object expected")
    unknown = [f"{key}: unknown; known are {', '.join(known)}" for key in given if key not in known]
    raise_problems(unknown, f"{name}.{section} of the plans:")
    return dict(given)
