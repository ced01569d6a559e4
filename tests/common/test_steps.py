"""The order of steps in a section: as written, or as given by `order`."""

from __future__ import annotations

from typing import Any

import pytest

from e2enet.common.steps import names_in_order, order_problem, with_order

STEPS: dict[str, Any] = {"order": None, "blur": {"p": 1}, "noise": {"p": 2}, "gamma": None}


def test_steps_follow_one_another_as_they_stand_or_as_order_says() -> None:
    assert names_in_order(STEPS) == ["blur", "noise"]
    assert names_in_order({**STEPS, "order": ["noise", "gamma", "blur"]}) == ["noise", "blur"]
    assert names_in_order({}) == []


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (None, None),
        (["noise", "blur"], None),
        (["gamma", "noise", "blur"], None),  # a sweep may omit gamma in one job and include it in another
        (["noise"], "x.order: lacks blur (a step that is null may be left out)"),
        (["noise", "blur", "noise"], "x.order: noise stands twice"),
        (["noize", "blur", "noise"], "x.order: noize is no step; did you mean noise?"),
        (["z", "blur", "noise"], "x.order: z is no step; expected blur | noise | gamma"),
    ],
)
def test_what_is_wrong_with_an_order(order: list[str] | None, problem: str | None) -> None:
    assert order_problem("x", {**STEPS, "order": order}) == problem


def test_configs_are_compared_by_the_order_written_out() -> None:
    config = {"seed": 1, "augmentation": STEPS}
    assert with_order(config) == {"seed": 1, "augmentation": {**STEPS, "order": ["blur", "noise"]}}
    swapped = {"seed": 1, "augmentation": dict(reversed(STEPS.items()))}
    assert swapped == config and with_order(swapped) != with_order(config)
    assert with_order({"seed": 1}) == {"seed": 1}
