"""Converts the section `data` of runs of earlier versions, whose data modules had their layouts in code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2enet.common.configs import as_plain, compose_config

MODULE = "e2enet.data.datasets."
# Earlier data module -> its file of conf/data now.
FILES = {
    "MSDDataModule": "msd",
    "NNUNetDataModule": "nnunet",
    "AMOSDataModule": "amos_ct",
    "BTCVDataModule": "btcv",
    "BraTSDataModule": "brats",
    "PhantomDataModule": "phantom",
}
CASES = "brats_2021"  # replaces data=brats data.layout=cases


def data_of_today(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with the keys of this version; a section of this version is returned unchanged."""
    if not is_of_earlier_version(section):
        return dict(section)
    name = CASES if section.get("layout") == "cases" else FILES[section["_target_"].removeprefix(MODULE)]
    config = compose_config([f"data={name}"])
    beside = {key: value for key, value in section.items() if key in config.data and key not in ("layout", "_target_")}
    config.data.update(beside)  # the layout refers to some of them
    today = as_plain(config.data)
    return {**section, "_target_": today["_target_"], "layout": today["layout"]}


def is_of_earlier_version(section: Mapping[str, Any]) -> bool:
    """Whether the section names one of the data modules of earlier versions."""
    target = str(section.get("_target_"))
    return target.startswith(MODULE) and target.removeprefix(MODULE) in FILES
