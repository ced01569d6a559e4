"""`DSFF` refuses settings and networks that do not fit, and needs no Lightning."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.network import DSFF
from tests.network.test_dsff_object import sgd
from tests.training.conftest import TinySparse

PROJECT = Path(__file__).parents[2]


def test_settings_are_checked_together() -> None:
    with pytest.raises(InputError) as caught:
        DSFF(0.0, start="dense", update_every=0, growth="magnitude", fraction_final=1.5, density_by_dim0={48: 2})
    assert str(caught.value).splitlines()[1:] == [
        "  - start='dense': expected uniform or erk",
        "  - growth='magnitude': expected random or gradient",
        "  - density=0.0: expected a share in (0, 1]",
        "  - density_by_dim0[48]=2: expected a share in (0, 1]",
        "  - fraction_final=1.5: expected a share in [0, 1]",
        "  - update_every=0: expected a number > 0",
    ]
    with pytest.raises(InputError, match=r"density='0\.2': expected a share"):
        DSFF("0.2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="granularity must be"):
        DSFF(granularity="layer")


def test_what_does_not_fit_is_refused_before_anything_is_hooked() -> None:
    model = TinySparse(sgd)
    optimizer = sgd(model.parameters())
    with pytest.raises(InputError, match="no fusion layers"):
        DSFF().attach(model.head, optimizer, total_steps=9)
    with pytest.raises(InputError, match=r"second\.weight: the optimizer does not hold it") as caught:
        DSFF().attach(model, sgd(model.first.parameters()), total_steps=9)
    assert "first.weight" not in str(caught.value)
    model.first.weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"first\.weight: requires no gradient"):
        DSFF().attach(model, optimizer, total_steps=9)
    model.first.weight.requires_grad_(True)
    with pytest.raises(InputError, match="total_steps=0: expected the optimizer steps") as caught:
        DSFF(update_unit="epochs").attach(model, optimizer, total_steps=0)
    assert "epochs=None: expected a number > 0" in str(caught.value)
    other = DSFF()
    other.load_state_dict({"step": 1, "num_updates": 0, "last_churn": None, "ever_active": {"third": torch.ones(1, 1)}})
    with pytest.raises(InputError, match="of another network, with layers third; expected first, second"):
        other.attach(model, optimizer, total_steps=9)
    assert not optimizer._optimizer_step_post_hooks and not model.second.weight._backward_hooks
    masks = DSFF().attach(model, optimizer, total_steps=9)
    with pytest.raises(InputError, match="attached already"):
        masks.attach(model, optimizer, total_steps=9)


def test_the_network_room_needs_no_lightning() -> None:
    for path in sorted((PROJECT / "e2enet" / "network").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in names), path
