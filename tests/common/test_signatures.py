"""Rules for config values that are read from the target's signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
import torch
from torch import Tensor
from typing_extensions import Unpack

from e2enet.common.signatures import annotation_rule, build_nested, build_part, resolve_target, signature_of


class Named(TypedDict, total=False):
    size: int


def test_named_needed_and_any() -> None:
    def target(a: int, *, b: float = 0, c: str = None, **others: int) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    found = signature_of(target)
    assert (list(found.rules), found.needed, found.takes_any) == (["a", "b", "c"], ["a"], True)
    assert found.rules["b"].accepts(1) and not found.rules["b"].accepts("1")
    assert found.rules["c"].accepts(None) and not found.rules["c"].accepts(1)  # older code writes Optional this way
    assert signature_of(torch.optim.SGD).needed == ["params"]


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts_of_mine").mkdir()
    (tmp_path / "parts_of_mine" / "broken.py").write_text("from torch.optim import NotYet\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"cannot import name 'NotYet' from 'torch\.optim'"):
        resolve_target("parts_of_mine.broken.Optimizer")
    with pytest.raises(AttributeError, match=r"module 'torch\.optim' has no attribute 'NotYet'"):
        resolve_target("torch.optim.NotYet")
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        resolve_target("torch.optim.absent.NotYet")


def test_options_of_a_typed_dict_are_named() -> None:
    def target(**options: Unpack[Named]) -> None: ...

    found = signature_of(target)
    assert list(found.rules) == ["size"] and not found.takes_any and not found.rules["size"].accepts("x")


@pytest.mark.parametrize(
    ("hint", "accepted", "refused"),
    [
        (int, [0, -3], [True, 1.5, "1", None]),
        (bool, [True, False], [1, None]),
        (float, [1, 0.5], [True, "0.5"]),
        (int | None, [None, 1], ["x"]),
        (Literal["min", "max"], ["min"], ["most", None]),
        (list[int] | str, [[1, 2], "all"], [[1.5], 1]),
        (Sequence[float], [[1, 2.5]], [1, ["x"]]),
        (float | Tensor, [1, "whatever becomes a tensor"], []),
        (Any, [None, {"a": 1}], []),
    ],
)
def test_annotations(hint: Any, accepted: list[Any], refused: list[Any]) -> None:
    rule = annotation_rule(hint)
    assert [rule.accepts(value) for value in accepted] == [True] * len(accepted)
    assert [rule.accepts(value) for value in refused] == [False] * len(refused)


def pair(first: int, second: int = 2) -> tuple[int, int]:
    return first, second


def test_what_is_known_is_given_where_it_is_asked_for_and_left_open() -> None:
    section = {"_target_": f"{__name__}.pair", "first": 1}
    assert build_part(section, first=5, second=7, third=9) == (1, 7)
    assert build_part({**section, "second": 3}, second=7) == (1, 3)
    assert build_nested([section, {"a": 1}, "x"]) == [(1, 2), {"a": 1}, "x"]
