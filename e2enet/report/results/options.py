"""Read the settings of conf/report.yaml with `key=value` overrides, and report all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.config_check import Schema, config_problems
from e2enet.common.config_rules import Rule, flag, is_number, number, positive, whole
from e2enet.common.configs import CONFIGS
from e2enet.common.errors import InputError, first_line, raise_problems

HEADING = "the report cannot start (all keys: e2enet report --help):"
SCHEMA = Schema(
    rules={
        "confidence": Rule(lambda value: is_number(value) and 0 < value < 1, "a number in (0, 1)"),
        "resamples": whole(100),
        "seed": whole(0),
        "trade_off.show": flag,
        "trade_off.accuracy": number(0),
        "trade_off.cost": number(0),
        "refresh": positive,
    },
    parts={},
)


@dataclass(frozen=True)
class Options:
    """Checked settings of a report; see conf/report.yaml for what each means."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0
    trade_off: bool = False
    accuracy: float = 1.0
    cost: float = 0.5
    refresh: float = 3.0

    @property
    def alpha(self) -> float:
        """The level of the tests: 1 - confidence, without the last digits of 1 - 0.95."""
        return round(1 - self.confidence, 12)


def read_options(overrides: Sequence[str] = ()) -> Options:
    """Read the settings of conf/report.yaml with overrides such as `resamples=1000`.

    Raises:
        InputError: lists every unknown key and every invalid value.
    """
    raise_problems([f"{text}: expected key=value" for text in overrides if "=" not in text], HEADING)
    try:
        given = OmegaConf.from_dotlist(list(overrides))
        config = OmegaConf.merge(OmegaConf.load(CONFIGS / "report.yaml"), given)
        assert isinstance(config, DictConfig)
    except OmegaConfBaseException as error:
        raise InputError(f"{HEADING}\n  - {first_line(error)}") from error
    raise_problems(config_problems(config, SCHEMA), HEADING)
    return Options(
        confidence=config.confidence,
        resamples=config.resamples,
        seed=config.seed,
        trade_off=config.trade_off.show,
        accuracy=config.trade_off.accuracy,
        cost=config.trade_off.cost,
        refresh=config.refresh,
    )
