"""Untrusted checkpoints are refused with file, value and expectation before anything is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.network.packed import pack_kernels

Content = dict[str, Any]
Edit = Callable[[Content], Any]


class Harmful:
    """Make a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def dataset(**changes: Any) -> Edit:
    return lambda content: content["hyper_parameters"]["dataset"].update(changes)


def network(**changes: Any) -> Edit:
    return lambda content: content["hyper_parameters"]["network"].update(changes)


def plan(**changes: Any) -> Edit:
    return lambda content: content["hyper_parameters"]["plan"].update(changes)


def weight(change: Callable[[torch.Tensor], Any]) -> Edit:
    """Change the weight of the first head, (3, 2, 1, 1, 1)."""

    def edit(content: Content) -> None:
        state = content["state_dict"]
        state["network.heads.0.weight"] = change(state["network.heads.0.weight"])

    return edit


def without_masks(content: Content) -> None:
    for name in [name for name in content["state_dict"] if name.endswith("kernel_mask")]:
        del content["state_dict"][name]


def groups_that_differ(content: Content) -> None:
    content["hyper_parameters"]["group_size"] = 2
    for name in [name for name in content["state_dict"] if name.endswith("kernel_mask")]:
        content["state_dict"][name][0, 0] = False


def packed(change: Callable[[dict[str, Any], str, str], Any] = lambda state, weight, mask: None) -> Edit:
    """Switch off the first kernel of each mask and pack the weights.

    `change` gets the state dict and the names of the first layer's weight and mask.
    """

    def edit(content: Content) -> None:
        state = content["state_dict"]
        masks = [name for name in state if name.endswith("kernel_mask")]
        for name in masks:
            state[name][0, 0] = False
        content["state_dict"] = state = pack_kernels(state)
        change(state, masks[0].replace("kernel_mask", "weight"), masks[0])

    return edit


def kernels_beyond_all_memory(content: Content) -> None:
    """Store a stride of 2^10 x 2^10 whose kernels are all inactive, so that they take a few bytes."""
    packed()(content)
    plan(strides=[[1, 1024, 1024]], patch_size=[4, 1024, 1024])(content)
    state = content["state_dict"]
    (mask,) = (name for name in state if name.endswith("up.kernel_mask"))
    state[mask] = torch.zeros_like(state[mask])
    state[mask.replace("kernel_mask", "weight")] = torch.zeros(0, 1, 1024, 1024)


FOUR = {0: "background", 1: "liver", 2: "spleen", 3: "kidney"}
WRONG: dict[str, tuple[Edit, str]] = {
    "another-class-count": (dataset(labels=FOUR), r"(?s)weights do not fit.*heads.*shape \(3, .*the network \(4, "),
    "another-channel-count": (dataset(channels=["T1", "T2"]), r"channels are \['T1', 'T2'\]: 1 of them expected"),
    "labels-with-a-gap": (dataset(labels={0: "b", 1: "x", 5: "y"}), r"labels are \[0, 1, 5\]: 0, 1, \.\. expected"),
    "ignore-label-among-classes": (
        dataset(ignore=1),
        r"label 1 is called 'ignore': the highest of \[0, 1, 2\] expected",
    ),
    "regions-without-order": (
        dataset(trained_regions={"all": [1, 2], "b": [2], "a": [1]}),
        r"regions_class_order is \[\]: one label for each region expected",
    ),
    "region-of-no-labels": (
        dataset(trained_regions={"all": [1, 9], "b": [2], "a": [1]}, regions_class_order=[1, 2, 1]),
        r"region 'all' unites \[1, 9\]: labels out of \[1, 2\] expected",
    ),
    "order-without-regions": (dataset(regions_class_order=[1]), r"regions_class_order is \[1\]: none expected"),
    "labels-that-are-none": (dataset(labels={"x": "y"}), "describe no usable network: invalid literal"),
    "mirror-axis-that-is-none": (
        dataset(mirror_axes=[3]),
        r"mirror_axes are \[3\]: different axes out of 0, 1, 2 expected",
    ),
    "ending-that-is-a-path": (
        dataset(file_ending="/../../elsewhere.nii.gz"),
        r"file_ending is '/\.\./\.\./elsewhere\.nii\.gz': \.nii\.gz, .* or \.gipl expected",
    ),
    "without-masks": (without_masks, r"lacks the masks of \d+ sparse layers \(.*kernel_mask, \.\.\)"),
    "diverged": (weight(lambda w: w * torch.nan), r"heads\.0\.weight holds NaN or infinity.*finite weights expected"),
    "list-as-weight": (weight(torch.Tensor.tolist), r"heads\.0\.weight is a list, a plain tensor expected"),
    "sparse-weight": (weight(torch.Tensor.to_sparse), r"heads\.0\.weight is a Tensor, a plain tensor expected"),
    "shape-without-values": (
        weight(lambda w: torch.zeros(1).expand(10**12)),
        r"heads\.0\.weight has shape \(1000000000000,\), but fewer values than that in the file",
    ),
    "unknown-network": (
        network(name="os.system"),
        r"_target_=os\.system: is no network of e2enet, and a checkpoint could",
    ),
    "unknown-setting": (network(command="x"), r"E2ENet has no settings \['command'\]"),
    "network-beyond-all-memory": (network(base_features=10**7, max_features=10**7), "weights do not fit the network"),
    "strides-beyond-all-numbers": (plan(strides=[[2**32] * 3] * 2), r"strides is .*: one triple of whole numbers >= 1"),
    "endless-strides": (plan(strides=[[1, 1, 1]] * 10**5), "up to 16 of them, expected"),
    "spacing-beyond-all-numbers": (
        plan(spacing=[1e-310, 1, 1]),
        r"spacing is \[1e-310, 1, 1\]: .*0\.0001 to 10000, expected",
    ),
    "batch-beyond-all-floats": (plan(batch_size=10**400), "batch_size is 1000.*: a whole number >= 1 expected"),
    "no-plan": (lambda c: c["hyper_parameters"].pop("plan"), "its hyper_parameters lack 'plan'"),
    "plan-of-a-list": (lambda c: c["hyper_parameters"].update(plan=[1]), "describe no usable network"),
    "weights-of-a-list": (lambda c: c.update(state_dict=[1]), r"expected hyper_parameters and state_dict"),
    "groups-of-none": (lambda c: c["hyper_parameters"].update(group_size=0), "group_size must be a whole number >= 1"),
    "groups-of-text": (
        lambda c: c["hyper_parameters"].update(group_size="8"),
        "group_size must be a whole number >= 1",
    ),
    "groups-that-differ": (groups_that_differ, r"masks are not what .* say: decoder\..* not shared by groups of 2"),
    "packed-kernels-too-few": (
        packed(lambda state, weight, mask: state.update({weight: state[weight][1:]})),
        r"decoder\..*weight has shape \(6, 1, 2, 2\), the active kernels of its mask \(7, 1, 2, 2\)",
    ),
    "packed-kernels-of-another-size": (
        packed(lambda state, weight, mask: state.update({weight: state[weight][..., :1]})),
        r"decoder\..*weight has shape \(7, 1, 2, 1\), the active kernels of its mask \(7, 1, 2, 2\)",
    ),
    "packed-without-mask": (
        packed(lambda state, weight, mask: state.pop(mask)),
        r"lacks the masks of 1 sparse layers \(decoder\..*kernel_mask, \.\.\)",
    ),
    "packed-with-a-mask-of-another-shape": (
        packed(lambda state, weight, mask: state.update({mask: state[mask][:, :1].clone()})),
        r"decoder\..*kernel_mask has shape \(4, 1\), the network \(4, 2\)",
    ),
    "packed-with-a-mask-of-numbers": (
        packed(lambda state, weight, mask: state.update({mask: state[mask].float()})),
        r"decoder\..*kernel_mask is of torch\.float32, bool expected",
    ),
    "packed-kernels-beyond-all-memory": (
        kernels_beyond_all_memory,
        r"up\.weight is packed, with kernels of 1048576 values; at most 512 expected",
    ),
    "keys-that-are-no-names": (lambda c: c.update(state_dict={1: torch.ones(1)}), "lacks heads|lacks encoder"),
}


def refusal(bench: Any) -> str:
    """Return the error of prediction, which must not have written any output."""
    with pytest.raises(InputError) as caught:
        bench.predict()
    assert not bench.out.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_what_it_says_cannot_be(bench: Any, name: str) -> None:
    edit, message = WRONG[name]
    path = bench.save_checkpoint(edit)
    found = refusal(bench)
    assert str(path) in found and re.search(message, found), found


def test_pickled_code_is_never_run(bench: Any, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = bench.save_checkpoint(lambda content: content.update(callbacks=Harmful(trap)))
    found = refusal(bench)
    assert f"{path}: is no checkpoint, or holds pickled objects" in found and "expected tensors and plain" in found
    assert "plain containers (posix.mkdir)" in found and "weights_only" not in found
    assert not trap.exists()
    torch.load(path, weights_only=False)  # unsafe loading, as in other programs
    assert trap.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_cut_off(bench: Any, kept: float) -> None:
    content = bench.checkpoint.read_bytes()
    bench.checkpoint.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    assert f"{bench.checkpoint}: " in refusal(bench) and "()" not in refusal(bench)


@pytest.mark.parametrize("edit", [lambda content: None, packed()], ids=["whole", "packed"])
def test_damaged_anywhere(edit: Edit, bench: Any) -> None:
    """A wrong byte is either refused with a message or changes nothing that prediction reads."""
    bench.save_checkpoint(edit)
    content = bench.checkpoint.read_bytes()
    random = torch.Generator().manual_seed(0)
    from e2enet.inference.checkpoint import load_model

    for place in torch.randint(len(content), (60,), generator=random).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        bench.checkpoint.write_bytes(damaged)
        try:
            load_model(bench.checkpoint)
        except InputError as error:
            assert str(error).startswith(f"{bench.checkpoint}: ")
