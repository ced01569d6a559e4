"""The engine refuses parts that it does not know, with a reason, and compares its logits before its first use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import compact, select_engine, select_training, select_validation, training
from e2enet.network.engine import select as selection
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.known import unknown, unknown_in_training
from e2enet.network.engine.self_check import small_size
from e2enet.network.engine.sparse_layers import Convolution
from e2enet.network.engine.training import TrainingEngine
from e2enet.network.layers import PlaneConv3d
from e2enet.network.recompute import checkpoint_activations
from tests.network.engine.test_compact import SIZE, VARIANTS, make_model, outputs
from tests.network.engine.test_training import sample

CPU = torch.device("cpu")


class Doubled(E2ENet):
    """A network with its own forward pass."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(2 * x)


def block(model: E2ENet) -> Any:
    return model.encoder[0][1]  # type: ignore[index]


def node(model: E2ENet) -> Any:
    return model.decoder.columns[0][0]  # type: ignore[union-attr, index]


def another_head(model: E2ENet, **settings: Any) -> None:
    model.heads[0] = nn.Conv3d(6, 5, **({"kernel_size": 1, "bias": False} | settings))


def set_attribute(of: Callable[[E2ENet], Any], name: str, value: Any) -> Callable[[E2ENet], None]:
    return lambda model: setattr(of(model), name, value)


def share_weights(model: E2ENet) -> None:
    block(model).conv.weight = nn.Parameter(torch.randn_like(block(model).conv.weight))
    node(model).up.weight = model.decoder.columns[1][0].up.weight  # type: ignore[union-attr, index]


CHANGES: dict[str, tuple[Callable[[E2ENet], Any], str]] = {
    "head with bias": (lambda m: another_head(m, bias=True), r"its heads.0 has a \(5,\) bias, where none"),
    "larger head": (lambda m: another_head(m, kernel_size=3, padding=1), r"its heads.0 has kernel_size \(3, 3, 3\)"),
    "head in groups": (lambda m: another_head(m, groups=1, dilation=2), r"its heads.0 has dilation \(2, 2, 2\)"),
    "head of another class": (lambda m: m.heads.__setitem__(0, PlaneConv3d(6, 5, (1, 1, 1))), "heads holds a .*PlaneC"),
    "slope": (set_attribute(lambda m: block(m).norm, "slope", 1.5), r"its encoder.0.1.norm has slope 1.5"),
    "negative slope": (set_attribute(lambda m: block(m).norm, "slope", -0.1), "has slope -0.1"),
    "eps": (set_attribute(lambda m: block(m).norm, "eps", None), "has eps None"),
    "norm": (set_attribute(block, "norm", nn.InstanceNorm3d(6, affine=True)), "holds a module InstanceNorm3d, norm"),
    "norm without weight": (lambda m: block(m).norm.register_parameter("weight", None), "no norm of 6 channels"),
    "padding": (set_attribute(lambda m: block(m).conv, "padding", (0, 0, 0)), r"conv has padding \(0, 0, 0\)"),
    "padding mode": (set_attribute(lambda m: block(m).conv, "padding_mode", "circular"), "has padding_mode 'circular'"),
    "dilation": (set_attribute(lambda m: block(m).conv, "dilation", (1, 2, 2)), "has dilation"),
    "bias of a conv": (lambda m: block(m).conv.register_parameter("bias", None), r"has no bias, where \(6,\)"),
    "kernel": (set_attribute(lambda m: block(m).conv, "kernel_size", (1, 5, 5)), r"kernel_size \(1, 5, 5\)"),
    "transposed stride": (set_attribute(lambda m: node(m).up, "output_padding", (0, 1, 0)), "has output_padding"),
    "shift": (lambda m: (set_attribute(block, "shift_size", 3)(m), flat(m)), "has shift_size 3 with kernel_size"),
    "dropout": (lambda m: m.encoder[0].append(nn.Dropout()), "its encoder.0 holds a module Dropout, 2"),
    "forward of a block": (set_attribute(block, "forward", lambda *x: x[0]), "encoder.0.1 has a forward of its own"),
    "forward of it all": (set_attribute(lambda m: m, "forward", lambda x: x), "the network has a forward of its own"),
    "_forward": (set_attribute(lambda m: m, "_forward", lambda x: x), "the network has a _forward of its own"),
    "a node's method": (set_attribute(node, "_fuse", lambda *x: x[0]), "has a _fuse of its own"),
    "forward": (set_attribute(lambda m: block(m).conv, "forward", lambda x: x), "has a forward of its own"),
    "hook": (lambda m: node(m).register_forward_hook(lambda *a: None), r"columns.0.0 has a hook \(forward_hooks\)"),
    "hook before": (lambda m: m.register_forward_pre_hook(lambda *a: None), r"network has a hook \(forward_pre_hooks"),
    "hook backward": (lambda m: block(m).register_full_backward_hook(lambda *a: None), r"hook \((is_full_)?backward"),
    "parametrization": (
        lambda m: nn.utils.parametrize.register_parametrization(block(m).conv, "weight", nn.Identity()),
        "holds a module ParametrizedPlaneConv3d, conv",
    ),
    "spectral norm by hooks": (lambda m: nn.utils.spectral_norm(block(m).conv), "encoder.0.1.conv has a"),
    "float64": (lambda m: m.double(), "has a weight of torch.float64, expected torch.float32"),
    "one half": (lambda m: node(m).bfloat16(), "has a weight of torch.bfloat16"),
    "mask of numbers": (lambda m: node(m).up.register_buffer("kernel_mask", torch.ones(12, 6)), "mask of torch.float"),
    "shape of a weight": (
        lambda m: setattr(block(m).conv, "weight", nn.Parameter(torch.zeros(6, 6, 1, 3, 1))), "has a .* weight, where"
    ),
    "part": (set_attribute(lambda m: m, "run_part", lambda part, *x: 2 * part(*x)), "has run_part"),
}  # fmt: skip


def flat(model: E2ENet) -> None:
    conv = block(model).conv
    conv.kernel_size, conv.padding = (3, 3, 3), (1, 1, 1)
    conv.weight = nn.Parameter(torch.randn(6, 6, 3, 3, 3))


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_known_is_refused_with_a_reason(name: str) -> None:
    change, reason = CHANGES[name]
    model = make_model().train()
    change(model)
    with pytest.raises(InputError, match=f"the engine cannot run this network: .*{reason}.*; expected engine=dense"):
        CompactNetwork(model.eval())
    with pytest.raises(InputError, match=reason):
        TrainingEngine(model.train())
    assert compact(model) is model
    assert select_engine(model, "auto", device=CPU, patch_size=SIZE) is model
    assert select_validation(model, "auto", amp_dtype=None) is model
    with pytest.raises(InputError, match=r"^engine=sparse: .*expected engine=auto or dense"):
        select_engine(model, "sparse", device=CPU, patch_size=SIZE)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_what_the_package_builds_is_known(settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    assert unknown(model) is None and unknown_in_training(model) is None
    for module in model.modules():
        if hasattr(module, "slope"):
            module.slope, module.eps = 0.2, 1e-3
    assert unknown(model) is None
    checkpoint_activations(model)
    model.compile()
    assert unknown(model) is None
    torch.testing.assert_close(*outputs(copy.deepcopy(model), CompactNetwork(model)), rtol=0, atol=1e-4)


def test_a_class_made_of_it_is_refused() -> None:
    model = Doubled(2, 5, [(1, 2, 2)], base_features=4)
    assert compact(model) is model
    with pytest.raises(InputError, match="Doubled is a class made of E2ENet, which may differ"):
        CompactNetwork(model)


def test_a_network_on_another_device_is_refused() -> None:
    model = make_model()
    block(model).to("meta")
    with pytest.raises(InputError, match=r"its encoder.0.1.conv has a weight on meta"):
        CompactNetwork(model)


def test_hooks_of_every_network_are_seen() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        reason = unknown(make_model())
    finally:
        handle.remove()
    assert reason == "a hook is registered for the modules of every network" and unknown(make_model()) is None


def test_shared_weights_run_but_do_not_train() -> None:
    model = make_model(strides=[(2, 2, 2), (2, 2, 2)], base=4)
    first, second = (model.encoder[level][1].conv for level in (0, 0))  # type: ignore[index]
    assert first is second
    other = model.encoder[1][1].conv  # type: ignore[index]
    last = model.decoder.columns[0][1].blocks[1].conv  # type: ignore[union-attr, index]
    assert other.weight.shape == last.weight.shape
    last.kernel_mask.fill_(True)
    last.weight = other.weight
    torch.testing.assert_close(*outputs(model, CompactNetwork(model, choose=False)), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"its encoder.1.1.conv.weight and decoder.* are one parameter"):
        TrainingEngine(model.train())


@pytest.mark.parametrize("name", ["hook", "slope", "head with bias", "float64"])
def test_changes_between_steps_are_refused(name: str) -> None:
    change, reason = CHANGES[name]
    model = make_model().train()
    engine = TrainingEngine(model)
    engine(sample())
    change(model)
    with pytest.raises(InputError, match=f"{reason}|it has changed since the engine was made for it"):
        engine(sample())


def test_other_heads_than_at_first_are_refused() -> None:
    model = make_model(strides=[(1, 2, 2), (2, 2, 2), (2, 2, 2)]).train()
    engine = TrainingEngine(model)
    model.deep_supervision = False
    with pytest.raises(InputError, match="it has changed"):
        engine(torch.zeros(1, 2, *small_size(model)))


def test_auto_says_why_torch_runs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    selection._log_once.cache_clear()
    model = make_model().train()
    another_head(model, bias=True)
    for _ in range(2):
        assert select_training(model, "auto", amp_dtype=None) is model
        assert select_engine(model, "auto", device=CPU, patch_size=SIZE) is model
    assert caplog.text.count("engine=auto: torch runs the network with every kernel: its heads.0 has a (5,) bias") == 1


def test_an_engine_that_is_off_is_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As on a processor that runs the code wrongly, or after a method was replaced."""
    selection._log_once.cache_clear()
    right, model = Convolution.__call__, make_model(0.2, base=32)

    def wrong(layer: Convolution, sources: Any) -> Any:
        signal = right(layer, sources)
        for volume in signal.volumes():
            volume *= 1.1 if layer.norm is None else 1
        return signal

    monkeypatch.setattr(Convolution, "__call__", wrong)
    reason = r"logits of head 0 differ from the network's by 0\.\d+ on an input of \(16, 32, 32\); .*engine=dense"
    with pytest.raises(InputError, match=reason):
        compact(model)
    with pytest.raises(InputError, match=reason):
        TrainingEngine(model.train())
    assert select_engine(model, "auto", device=CPU, patch_size=SIZE) is model
    assert select_training(model, "auto", amp_dtype=None) is model
    assert "differ from the network's" in caplog.text
    with pytest.raises(InputError, match=reason):
        select_validation(model, "sparse", amp_dtype=None)


def test_an_engine_whose_gradients_are_off_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    selection._log_once.cache_clear()
    right, model = training.correlate, make_model(0.2, base=32).train()

    def wrong(*given: Any, **named: Any) -> Any:
        return 0.9 * right(*given, **named)

    monkeypatch.setattr(training, "correlate", wrong)
    with pytest.raises(InputError, match=r"gradient of .*weight differs from the network's by 10%"):
        TrainingEngine(model)
    assert select_training(model, "auto", amp_dtype=None) is model
    assert "differs from the network's by 10%" in caplog.text
    compact(model)  # prediction has no gradients


def test_networks_whose_logits_are_not_finite_pass() -> None:
    model = make_model()
    block(model).conv.weight.data[0] = torch.nan
    found, expected = outputs(model, compact(model, choose=False))
    assert not expected.isfinite().all() and not found.isfinite().all()


def test_checking_draws_no_random_numbers_and_leaves_the_network_as_it_was() -> None:
    model = make_model().train()
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    compact(model)
    TrainingEngine(model)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
