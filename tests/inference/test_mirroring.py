"""Mirrored copies in one batch: the same probabilities, and fewer at once if memory does not suffice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from e2enet.inference import sliding_window
from e2enet.inference.mirroring import MirroredPasses, copies_at_once, least_at_once, stack_on
from e2enet.inference.sliding_window import predict_probabilities
from e2enet.network.engine.inference import CompactNetwork
from tests.inference.test_sliding_window import PATCH, one_sided_network
from tests.network.engine.test_compact import make_model

CPU = torch.device("cpu")


class Bounded(nn.Module):
    """A network that remembers its batches and has memory for `most` samples."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__()
        self.network, self.most, self.batches = one_sided_network(0), most, list[int]()
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        if len(x) > self.most:
            raise self.error
        out: Tensor = self.network(x)
        return out


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding_window, "copies_at_once", lambda device, copies, samples: copies)


def predicted(*networks: nn.Module, batch_size: int = 1) -> Tensor:
    image = torch.randn(1, 4, 9, 8, generator=torch.Generator().manual_seed(0))  # two windows
    return predict_probabilities(list(networks), image, PATCH, mirror_axes=(0, 1, 2), batch_size=batch_size)


def test_copies_at_once_by_device() -> None:
    assert copies_at_once(CPU, 8) == 1 and copies_at_once(torch.device("cuda:1"), 8) == 8
    assert copies_at_once(CPU, 8, 3) == 3 and copies_at_once(CPU, 2, 3) == 2


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("most", "batches"),
    [(8, [8, 8]), (7, [8, 4, 4, 4, 4]), (3, [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]), (1, [8, 4, 2, *[1] * 16])],
)
def test_a_batch_of_copies_gives_what_single_ones_give(
    most: int, batches: list[int], batch_size: int, all_at_once: None, monkeypatch: Any
) -> None:
    network, other = Bounded(most * batch_size), Bounded(8)
    together = predicted(network, other, batch_size=batch_size)
    if batch_size == 1:
        assert network.batches == batches
    monkeypatch.undo()
    single = Bounded(2)
    expected = predicted(single, single)
    assert set(single.batches) == {1}
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), torch.OutOfMemoryError("out of memory")])
def test_other_errors_and_a_single_copy_without_memory_are_raised(error: Exception, all_at_once: None) -> None:
    network = Bounded(0, error)
    with pytest.raises(type(error), match=str(error)):
        predicted(network)
    assert network.batches == ([8, 4, 2, 1] if "memory" in str(error) else [8])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError("Unable to allocate 4.00 GiB for an array"),  # NumPy's, of the engine's volumes
    ],
)
def test_libraries_without_memory_count_too(error: Exception, all_at_once: None) -> None:
    network = Bounded(2, error)
    predicted(network)
    assert network.batches[:3] == [8, 4, 2]


def test_fewer_copies_leave_room_for_the_sums(all_at_once: None, monkeypatch: Any) -> None:
    network, asked = Bounded(8), list[int]()

    def room(grid: Any, num_classes: int, device: torch.device) -> torch.device:
        asked.append(num_classes)
        return torch.device("meta") if network.batches[-1] > 2 else device

    monkeypatch.setattr(sliding_window, "device_of_sums", room)
    found = predicted(network)
    assert network.batches == [8, 4, *[2] * 8] and asked == [3] * 4  # thrice for a batch, and once for the sums
    monkeypatch.undo()
    torch.testing.assert_close(found, predicted(Bounded(1)), rtol=0, atol=1e-6)


def test_every_copy_comes_with_its_axes_and_is_still_mirrored(all_at_once: None) -> None:
    windows = torch.arange(24.0).view(1, 1, 2, 3, 4).repeat(2, 1, 1, 1, 1) + torch.tensor([0, 100]).view(2, 1, 1, 1, 1)
    subsets = [(), (0,), (1, 2)]
    passes = MirroredPasses(subsets, CPU, None, 1, lambda classes: True, lambda: None)
    found = list(passes.run(nn.Identity(), windows))
    assert [axes for axes, _ in found] == subsets
    for axes, logits in found:
        assert torch.equal(logits, windows.flip([axis + 2 for axis in axes]))


def test_windows_are_stacked() -> None:
    parts = [torch.full((1, 2, 2, 2), value) for value in (1.0, 2.0)]
    assert torch.equal(stack_on(CPU, parts), torch.stack(parts))


def test_a_gpu_copies_windows_from_pinned_memory_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    copied: list[tuple[Tensor, Any, Any]] = []

    class Pinned(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            result = function(*arguments, **(named or {}))
            if (named or {}).get("pin_memory"):
                made.append(result)
            return result

    def to(self: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        copied.append((self, device, non_blocking))
        return self

    with FakeTensorMode(), Pinned():  # shapes alone: a CPU's torch pins no memory
        parts = [torch.ones(1, 2, 2, 2) for _ in range(3)]
        monkeypatch.setattr(Tensor, "to", to)
        stacked = stack_on(torch.device("cuda"), parts)
    assert stacked.shape == (3, 1, 2, 2, 2)
    (pinned,), ((source, *how),) = made, copied
    assert source.shape == pinned.shape and StorageWeakRef(source.untyped_storage()) == StorageWeakRef(
        pinned.untyped_storage()
    )
    assert how == [torch.device("cuda"), True]


@pytest.mark.parametrize("axes", [(), (0, 2)])
@pytest.mark.parametrize("samples", [2, 3, 4, 9, 40])
def test_the_engine_gets_several_windows_and_sums_have_the_same_bits(
    samples: int, axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    networks = [CompactNetwork(make_model(density), choose=False) for density in (0.3, 0.5)]
    forward, image = CompactNetwork.forward, torch.randn(2, 16, 24, 28, generator=torch.Generator().manual_seed(0))

    def noted(self: CompactNetwork, x: Tensor) -> Any:
        batches.append(len(x))
        return forward(self, x)

    def predict(count: int) -> tuple[Tensor, list[int]]:
        """Return probabilities, and the batches of both networks; there are 3 layers of 6 windows."""
        monkeypatch.setattr(CompactNetwork, "samples_at_once", lambda self, size: count)
        batches.clear()
        return predict_probabilities(networks, image, (8, 16, 16), mirror_axes=axes), list(batches)

    monkeypatch.setattr(CompactNetwork, "forward", noted)
    (expected, alone), (found, together) = predict(1), predict(samples)
    assert set(alone) == {1} and sum(together) == sum(alone) == 2 * 18 * 2 ** len(axes)
    assert max(together) == min(samples, 6 if not axes else 4 if samples < 8 else samples // 4 * 4, 24)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_one_window_at_a_time_unless_every_network_wants_several() -> None:
    engine = CompactNetwork(make_model(0.3), choose=False)
    engine.samples_at_once = lambda size: 4 if size == (8, 16, 16) else 0  # type: ignore[method-assign]
    assert least_at_once([engine], [8, 16, 16], CPU) == 4
    assert least_at_once([engine, one_sided_network(0)], [8, 16, 16], CPU) == 1
    assert least_at_once([engine], [8, 16, 16], torch.device("cuda")) == 1
