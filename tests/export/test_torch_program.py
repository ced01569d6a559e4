"""torch.export: a program that torch alone loads, with the logits of the network at any size and batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from e2enet.export.__main__ import main
from e2enet.inference.checkpoint import load_model

SHAPES = [(1, 2, 8, 16, 16), (3, 2, 4, 8, 8), (2, 2, 10, 12, 36), (1, 2, 24, 48, 40)]
PROGRAM = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("e2enet", "monai", "numba", "scipy"):
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
import torch
network = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save([network(image) for image in inputs], sys.argv[3])
"""


def test_torch_alone_runs_the_program(make_run, tmp_path: Path) -> None:
    run, output = make_run("two_channels", network={"shift_size": 5, "shift_input": True}), tmp_path / "torch"
    main([str(run), "--to", "torch", "--output", str(output)])
    assert sorted(path.name for path in output.iterdir()) == ["model.json", "model.pt2"]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(shape, generator=generator) for shape in SHAPES]
    torch.save(images, tmp_path / "inputs.pt")
    files = [str(path) for path in (output / "model.pt2", tmp_path / "inputs.pt", tmp_path / "logits.pt")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    network = load_model(run).network
    for image, found in zip(images, torch.load(tmp_path / "logits.pt"), strict=True):
        with torch.no_grad():
            expected = network(image)
        assert expected.std() > 0.5 and found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((output / "model.json").read_text())["plan"]["patch_size"] == [8, 16, 16]


def test_an_axis_of_one_step_keeps_its_length(make_run, tmp_path: Path) -> None:
    network = {"base_features": 2, "max_features": 4}
    run, output = make_run(network=network, patch_size=(2, 8, 16), dataset={"spacing_unit": "um"}), tmp_path / "torch"
    main([str(run), "--to", "torch", "--output", str(output)])
    program = torch.export.load(output / "model.pt2").module()
    image = torch.randn(1, 1, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program(image), load_model(run).network(image), atol=1e-4, rtol=1e-4)
    assert json.loads((output / "model.json").read_text())["spacing_unit"] == "um"
