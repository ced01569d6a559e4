"""Checkpoints: loading, refusals with their messages, and which of them can form an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.data.planning.plan import Plan
from e2enet.inference import checkpoint
from e2enet.inference.checkpoint import LoadedModel, load_ensemble, load_model
from e2enet.inference.finished import file_digest
from e2enet.network import E2ENet
from e2enet.network.build import build_network
from e2enet.network.dsff import fusion_layers
from e2enet.network.granularity import shared_inputs

LABELS = {0: "background", 1: "liver", 2: "spleen"}


class Harmful:
    """An object that only pickle can restore."""


def test_model_is_restored(write_checkpoint, make_content):
    content = make_content(num_channels=2)
    model = load_model(write_checkpoint(num_channels=2))
    assert (model.labels, model.channels) == (LABELS, ("MRI0", "MRI1"))
    assert (model.mirror_axes, model.file_ending) == ((2,), ".nii.gz")
    assert model.plan == Plan.from_dict(content["hyper_parameters"]["plan"])
    assert not model.network.training
    expected = E2ENet(2, 3, model.plan.strides, base_features=4, max_features=16).eval()
    state = {name.removeprefix("network."): value for name, value in content["state_dict"].items()}
    expected.load_state_dict(state)
    image = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.network(image), expected(image))


def test_a_network_that_looks_at_values_while_it_is_made(write_checkpoint):
    """MONAI's SwinUNETR cannot be built on the meta device."""
    network = {"_target_": "e2enet.network.baselines.SwinUNETR", "base_features": 12}
    built = build_network(network, in_channels=1, num_classes=3, strides=[(2, 2, 2)])

    def replace(content):
        content["hyper_parameters"]["network"] = network
        content["state_dict"] = {f"network.{name}": value for name, value in built.state_dict().items()}

    loaded = load_model(write_checkpoint(edit=replace)).network
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_what_scoring_of_its_label_files_needs_is_restored(write_checkpoint):
    def describe(content):
        content["hyper_parameters"]["dataset"] |= {"label_map": {4: 2}, "regions": {"whole": [1, 2]}}

    model = load_model(write_checkpoint(edit=describe))
    assert (model.label_map, model.regions) == ({4: 2}, {"whole": (1, 2)})
    plain = load_model(write_checkpoint("plain.ckpt"))  # as checkpoints were before
    assert (plain.label_map, plain.regions) == ({}, {})


def test_masks_come_with_the_weights(write_checkpoint):
    def sparsify(content):
        masks = [value for name, value in content["state_dict"].items() if name.endswith("kernel_mask")]
        assert masks
        for mask in masks:
            mask[0] = False

    network = load_model(write_checkpoint(edit=sparsify)).network
    masks = [value for name, value in network.state_dict().items() if name.endswith("kernel_mask")]
    assert all(not mask[0].any() and mask[1:].all() for mask in masks)


@pytest.mark.parametrize("group_size", [2, 10**30])
def test_group_size_comes_with_the_masks(write_checkpoint, group_size):
    def share(content):
        content["hyper_parameters"]["group_size"] = group_size
        for name, mask in content["state_dict"].items():
            if name.endswith("kernel_mask"):
                (mask[0] if name.endswith("up.kernel_mask") else mask[:, 0]).fill_(False)

    for layer in fusion_layers(load_model(write_checkpoint(edit=share)).network).values():
        groups, inputs = -(-layer.out_channels // group_size), layer.in_channels
        assert shared_inputs(layer).tolist() == [list(range(1, inputs))] * groups
    plain = load_model(write_checkpoint("plain.ckpt"))  # as checkpoints were before
    assert {layer.group_size for layer in fusion_layers(plain.network).values()} == {1}


def test_compiled_training_loads_too(write_checkpoint):
    def rename(content):
        state = content["state_dict"]
        content["state_dict"] = {
            name.replace("network.", "network._orig_mod.", 1): value for name, value in state.items()
        }

    plain, compiled = (
        load_model(write_checkpoint()),
        load_model(write_checkpoint("compiled.ckpt", edit=rename)),
    )
    for ours, theirs in zip(plain.network.parameters(), compiled.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_run_folder_means_its_best_checkpoint(write_checkpoint, tmp_path):
    path = write_checkpoint("run/checkpoints/best.ckpt")
    assert load_model(tmp_path / "run").path == path
    with pytest.raises(InputError, match=r"a folder without checkpoints/best\.ckpt"):
        load_model(tmp_path)


def replaced_while_read(monkeypatch: pytest.MonkeyPatch, path: Path, versions: list[Path]) -> Callable[[], LoadedModel]:
    """Return a function that loads `path`, which is replaced by the next of the versions after each read."""
    read, left = checkpoint.read_checkpoint, iter(versions)

    def read_and_replace(path: Path) -> dict[str, Any]:
        content = read(path)
        if (version := next(left, None)) is not None:
            version.replace(path)
        return content

    monkeypatch.setattr(checkpoint, "read_checkpoint", read_and_replace)
    return lambda: load_model(path)


def test_the_digest_is_that_of_the_weights_in_memory(write_checkpoint, monkeypatch):
    """A training may replace its checkpoint while it is read, and later."""
    paths = [write_checkpoint(f"{seed}.ckpt", seed=seed) for seed in range(4)]
    expected = [(file_digest(path), load_model(path).network.state_dict()) for path in paths]
    load = replaced_while_read(monkeypatch, paths[0], [paths[1]])
    model = load()
    assert model.digest == expected[1][0] == file_digest(paths[0]) != expected[0][0]
    assert all(torch.equal(value, expected[1][1][name]) for name, value in model.network.state_dict().items())
    paths[2].replace(paths[0])
    assert model.digest == expected[1][0]  # the weights in memory are the same


def test_a_file_that_is_replaced_at_every_read_is_refused(write_checkpoint, monkeypatch):
    paths = [write_checkpoint(f"{seed}.ckpt", seed=seed) for seed in range(4)]
    load = replaced_while_read(monkeypatch, paths[0], paths[1:])
    with pytest.raises(InputError, match=r"0\.ckpt: was replaced while it was read, 3 times; a file expected"):
        load()


def test_pickled_objects_are_refused(write_checkpoint):
    path = write_checkpoint(edit=lambda content: content.update(callbacks=Harmful()))
    with pytest.raises(InputError, match=r"best\.ckpt.*could run code"):
        load_model(path)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.ckpt: no such checkpoint"):
        load_model(tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(InputError, match=r"text\.ckpt: "):
        load_model(tmp_path / "text.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(InputError, match=r"empty\.ckpt: "):
        load_model(tmp_path / "empty.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(InputError, match=r"list\.ckpt: holds a list"):
        load_model(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt: is no checkpoint of e2enet train"):
        load_model(tmp_path / "other.ckpt")


def test_cut_off_file(write_checkpoint):
    path = write_checkpoint()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"best\.ckpt: "):
        load_model(path)


def test_another_number_of_classes(write_checkpoint):
    def add_class(content):
        content["hyper_parameters"]["dataset"]["labels"] = {**LABELS, 3: "kidney"}

    with pytest.raises(InputError, match=r"(?s)best\.ckpt: its weights do not fit.*heads.*shape \(3.*network \(4"):
        load_model(write_checkpoint(edit=add_class))


def test_missing_and_extra_weights(write_checkpoint):
    def rename(content):
        state = content["state_dict"]
        state["network.stranger"] = state.pop("network.heads.0.weight")

    with pytest.raises(InputError, match=r"(?s)lacks heads\.0\.weight.*has stranger"):
        load_model(write_checkpoint(edit=rename))


@pytest.mark.parametrize("key", ["plan", "dataset", "network"])
def test_missing_hyper_parameters(write_checkpoint, key):
    with pytest.raises(InputError, match=rf"best\.ckpt: its hyper_parameters lack '{key}'"):
        load_model(write_checkpoint(edit=lambda content: content["hyper_parameters"].pop(key)))


def test_impossible_network(write_checkpoint):
    def break_network(content):
        content["hyper_parameters"]["network"] = {
            **content["hyper_parameters"]["network"],
            "kernel_size": [5, 5, 5],
        }

    with pytest.raises(InputError, match=r"best\.ckpt: .*kernel_size"):
        load_model(write_checkpoint(edit=break_network))


def test_ensemble_of_one_task(write_checkpoint):
    models = load_ensemble([write_checkpoint("a.ckpt", seed=0), write_checkpoint("b.ckpt", seed=1)])
    first, second = (model.network.heads[0].weight for model in models)
    assert not torch.equal(first, second)


def test_ensemble_names_every_difference(write_checkpoint):
    def differ(content):
        content["hyper_parameters"]["plan"]["spacing"] = [2.0, 1.0, 1.0]
        content["hyper_parameters"]["dataset"]["labels"] = {0: "background", 1: "spleen", 2: "liver"}

    paths = [write_checkpoint("a.ckpt"), write_checkpoint("b.ckpt", edit=differ)]
    with pytest.raises(InputError) as raised:
        load_ensemble(paths)
    message = str(raised.value)
    assert "b.ckpt: labels is {0: 'background', 1: 'spleen', 2: 'liver'}, expected" in message
    assert "b.ckpt: plan.spacing is [2.0, 1.0, 1.0], expected [3.0, 1.2, 1.0]" in message


def test_ensemble_lists_every_unusable_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"(?s)a\.ckpt: no such.*b\.ckpt: no such"):
        load_ensemble([tmp_path / "a.ckpt", tmp_path / "b.ckpt"])
