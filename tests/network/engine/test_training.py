"""Training with active kernels only gives the masked network's gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.network.baselines import PlainUNet
from e2enet.network.dsff import apply_masks, expand_mask, fusion_layers, init_masks, set_group_size, update_masks
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.select import select_training
from e2enet.network.engine.training import TrainingEngine
from e2enet.network.recompute import checkpoint_activations
from tests.network.engine.test_compact import SIZE, VARIANTS, make_model


def gradients(run: Any, model: E2ENet, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Return logits, and gradients by parameter of a weighted sum of the logits; inactive kernels get zero."""
    model.zero_grad()
    found = run(x)
    heads = found if isinstance(found, list) else [found]
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(head.shape, generator=draw, dtype=torch.float64).to(head) for head in heads]
    torch.autograd.backward(heads, weights)
    result = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    for name, layer in fusion_layers(model).items():
        grad = result[f"{name}.weight"]
        assert grad is not None
        grad *= expand_mask(layer.kernel_mask, grad)
    return [head.detach() for head in heads], result


def assert_same(model: E2ENet, x: Tensor) -> None:
    """Assert that logits and gradients equal the masked network's in float64; inactive kernels get no gradient."""
    logits, found = gradients(TrainingEngine(model), model, x)
    for layer in fusion_layers(model).values():
        assert not (layer.weight.grad * ~expand_mask(layer.kernel_mask, layer.weight)).any()
    exact = copy.deepcopy(model).double()
    expected_logits, expected = gradients(exact, exact, x.double())
    torch.testing.assert_close(logits, [head.float() for head in expected_logits], rtol=0, atol=1e-4)
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None, name
            continue
        scale = float(grad.abs().max()) + 1e-3
        own = found[name]
        assert own is not None and float((own - grad).abs().max()) <= 1e-4 * scale, name


def sample(batch: int = 2, size: Any = SIZE) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("settings", [*VARIANTS, {"strides": [(4, 2, 2), (1, 3, 3)], "size": (8, 12, 18)}], ids=str)
def test_gradients_are_the_masked_networks(settings: dict[str, Any]) -> None:
    own = dict(settings)
    size = own.pop("size", SIZE)
    assert_same(make_model(**own).train(), sample(size=size))


@pytest.mark.parametrize("group_size", [8, 16])
def test_groups_run_the_same_way(group_size: int) -> None:
    model = make_model(1.0, base=16).train()
    set_group_size(model, group_size)
    init_masks(model, 0.25, generator=torch.Generator().manual_seed(1))
    assert_same(model, sample(1))


def test_weights_and_masks_are_taken_anew_at_every_step() -> None:
    model = make_model(0.3).train()
    engine = TrainingEngine(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        gradients(engine, model, sample())
        optimizer.step()
        update_masks(model, 0.5, generator=torch.Generator().manual_seed(4))
    exact = copy.deepcopy(model)
    _, found = gradients(engine, model, sample())
    _, expected = gradients(exact, exact, sample())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_node_that_nobody_reads_gets_gradients_of_zero() -> None:
    model = make_model(0.5).train()
    model.deep_supervision = False
    reader: Any = model.decoder.columns[1][0].blocks[0].conv  # type: ignore[union-attr]
    reader.kernel_mask[:, 6:] = False  # the upward flow
    reader.weight.data[:, 6:] = 0
    assert_same(model, sample())
    node: Any = model.decoder.columns[0][1].blocks[0].conv  # type: ignore[union-attr]
    assert not node.weight.grad.any()


def test_parameters_that_are_frozen_get_no_gradient() -> None:
    model = make_model(0.3).train()
    model.encoder.requires_grad_(False)
    assert_same(model, sample())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_gradients(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for count in (4, threads):
            torch.set_num_threads(count)
            model = make_model(0.3).train()
            found.append(gradients(TrainingEngine(model), model, sample(1, (16, 32, 32))))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_the_same_step_twice_gives_the_same_bits() -> None:
    model = make_model(0.3).train()
    engine = TrainingEngine(model)
    (_, first), (_, second) = (gradients(engine, model, sample(2, (16, 32, 32))) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)  # type: ignore[arg-type]


def test_a_value_that_is_not_finite_reaches_the_gradients() -> None:
    model = make_model(0.3).train()
    x = sample()
    x[0, 0, 4, 8, 8] = float("nan")
    logits, found = gradients(TrainingEngine(model), model, x)
    assert not torch.isfinite(logits[0][0]).all() and torch.isfinite(logits[0][1]).all()
    assert not torch.isfinite(found["encoder.0.0.conv.weight"]).all()  # type: ignore[arg-type]


def test_inputs_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="each must be a multiple of"):
        TrainingEngine(make_model().train())(torch.zeros(1, 2, 8, 16, 18))


def test_going_backward_twice_is_refused() -> None:
    logits = TrainingEngine(make_model().train())(sample())
    loss = sum(head.sum() for head in logits)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward a second time"):
        loss.backward()


def loss_of(run: Any, x: Tensor) -> Tensor:
    found = run(x)
    heads = found if isinstance(found, list) else [found]
    return sum((head.square().mean() for head in heads), torch.zeros(()))


CHANGED = {
    "a convolution's weight": lambda model, x: model.encoder[0][0].conv.weight.mul_(2),
    "a norm's weight": lambda model, x: model.encoder[1][0].norm.weight.add_(1),
    "a norm's bias": lambda model, x: model.encoder[1][0].norm.bias.add_(1),
    "a transposed convolution's": lambda model, x: model.decoder.columns[0][0].up.weight.zero_(),
    "a head's": lambda model, x: model.heads[0].weight.neg_(),
    "the input": lambda model, x: x.zero_(),
    "masks": lambda model, x: update_masks(model, 0.5, generator=torch.Generator().manual_seed(4)),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("forward_again", [False, True])
def test_what_was_changed_in_place_since_the_forward_pass_is_torchs_error(change: Any, forward_again: bool) -> None:
    model, x = make_model(0.3).train(), sample()
    engine = TrainingEngine(model)
    loss = loss_of(engine, x)
    with torch.no_grad():
        change(model, x)
    if forward_again:
        loss_of(engine, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backward_pass_is_that_of_its_own_masks(in_place: bool) -> None:
    model, x = make_model(0.3).train(), sample()
    engine = TrainingEngine(model)
    loss_of(engine, x).backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = loss_of(engine, x)
    for layer in fusion_layers(model).values():
        if in_place:
            layer.kernel_mask.logical_not_()
        else:
            layer.kernel_mask = ~layer.kernel_mask
    other = loss_of(engine, x)
    assert not torch.equal(other, loss)
    loss.backward()
    found = [p.grad for p in model.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True) if two is not None)  # type: ignore[arg-type]


def test_a_pass_amid_the_refresh_of_another_has_the_masks_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pass stands for one of another thread."""
    model = make_model(0.3).train()
    engine, found, pack = TrainingEngine(model), [], ActiveKernels.of_convolution
    for layer in fusion_layers(model).values():
        layer.kernel_mask.logical_not_()
        torch.nn.init.normal_(layer.weight, std=0.1)
    apply_masks(model)
    expected = loss_of(TrainingEngine(model), sample())

    def interrupted(*arguments: Any) -> ActiveKernels:
        monkeypatch.setattr(ActiveKernels, "of_convolution", pack)
        found.append(loss_of(engine, sample()))
        return pack(*arguments)

    monkeypatch.setattr(ActiveKernels, "of_convolution", interrupted)
    found.append(loss_of(engine, sample()))
    assert len(found) == 2 and all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_a_copy_of_the_engine_trains_a_copy_of_the_network(copied: Any) -> None:
    model = make_model(0.3).train()
    engine = TrainingEngine(model)
    other = copied(engine)
    with torch.no_grad():
        other.model.heads[0].weight.mul_(2)
    for run in (other, engine):
        torch.testing.assert_close(run(sample()), run.model(sample())[0], rtol=0, atol=1e-4)
    loss_of(other, sample()).backward()
    assert other.model.heads[0].weight.grad.any() and model.heads[0].weight.grad is None


def test_two_passes_at_once_add_their_gradients() -> None:
    model = make_model(0.3).train()
    engine, images = TrainingEngine(model), [sample(1), 2 - sample(1)]
    for image in images:
        loss_of(engine, image).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sum(loss_of(engine, image) for image in images).backward()  # type: ignore[union-attr]
    torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None], expected)


def test_parameters_put_in_the_place_of_others() -> None:
    model = make_model(0.3).train()
    engine, head = TrainingEngine(model), model.heads[0]
    before = head.weight
    head.weight = torch.nn.Parameter(before.detach() * 2)
    loss_of(engine, sample()).backward()
    assert before.grad is None and head.weight.grad is not None and head.weight.grad.any()
    loss = loss_of(engine, sample())
    head.weight = before
    with pytest.raises(RuntimeError, match="replaced by others since the forward pass"):
        loss.backward()


def test_an_input_that_asks_for_its_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="gives its input no gradient"):
        TrainingEngine(make_model().train())(sample().requires_grad_())


def test_auto_takes_the_engine_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(network: E2ENet, engine: str = "auto", amp_dtype: torch.dtype | None = None) -> Any:
        return select_training(network, engine, amp_dtype=amp_dtype)

    wide = make_model(0.3, base=32).train()
    assert isinstance(chosen(wide), TrainingEngine)
    assert chosen(wide, "dense") is wide
    narrow, full = make_model(0.3, base=16).train(), make_model(1.0, base=32).train()
    assert chosen(narrow) is narrow and chosen(full) is full
    assert isinstance(chosen(narrow, "sparse"), TrainingEngine)
    # A run whose density falls from 1 to 0.3 takes the engine from the start, wherever it is resumed.
    assert isinstance(select_training(full, "auto", amp_dtype=None, share=0.3), TrainingEngine)
    assert select_training(wide, "auto", amp_dtype=None, share=0.6) is wide
    for pays in (False, True):  # whether bfloat16 is fast, as with AMX
        monkeypatch.setattr("e2enet.network.engine.select.half_precision_pays_on_cpu", lambda pays=pays: pays)
        assert isinstance(chosen(wide), TrainingEngine)
        assert isinstance(chosen(wide, amp_dtype=torch.bfloat16), E2ENet if pays else TrainingEngine)
        assert isinstance(chosen(wide, "sparse", torch.bfloat16), TrainingEngine)


def test_what_only_torch_can_train_is_said() -> None:
    recomputed = make_model(0.3, base=32).train()
    checkpoint_activations(recomputed)
    compiled = make_model(0.3, base=32).train()
    compiled.compile()
    for network, reason in (
        (recomputed, "checkpoint_activations=true"),
        (compiled, "compile=true"),
        (PlainUNet(1, 2, [(2, 2, 2)]), "PlainUNet is no E2ENet"),
        (make_model(strides=[(5, 2, 2)]), "larger along the depth than 4"),
        (make_model(0.3, base=32).train().double(), "parameters are of torch.float64"),
    ):
        assert select_training(network, "auto", amp_dtype=None) is network
        with pytest.raises(
            InputError, match=f"training.engine=sparse: .*{reason}.*expected training.engine=auto or dense"
        ):
            select_training(network, "sparse", amp_dtype=None)
