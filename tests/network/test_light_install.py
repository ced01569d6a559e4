"""The network, DSFF, their cost and the engine need torch, numpy and numba: nothing else is imported."""

from __future__ import annotations

import subprocess
import sys

# Modules of any distribution that `pip install e2enet` would not bring cannot be imported in this process.
ONLY_BASE = """
import importlib.machinery, re, sys
from importlib.metadata import PackageNotFoundError, distributions as installed, requires

kept, waiting = {"e2enet"}, ["torch", "numpy", "numba"]
while waiting:
    name = waiting.pop().lower().replace("_", "-")
    if name in kept:
        continue
    kept.add(name)
    try:
        needs = requires(name) or []
    except PackageNotFoundError:
        continue
    waiting += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]


distributions = {}
for one in installed():
    for path in one.files or ():
        distributions.setdefault(path.parts[0].partition(".")[0], set()).add(one.metadata["Name"])
brought = {top for top, names in distributions.items() if kept & {name.lower().replace("_", "-") for name in names}}


class OnlyBase:
    # Finds what the import system finds, without the modules that the base does not bring.


    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        refused = top in distributions and top not in brought
        return None if refused else importlib.machinery.PathFinder.find_spec(name, path, target)


assert "rich" in distributions and "rich" not in brought
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = OnlyBase
"""

USE = """
import torch
from e2enet.network import DSFF, E2ENet
from e2enet.network.cost import count_cost
from e2enet.network.engine import compact, select_training

torch.manual_seed(0)
model = E2ENet(1, 3, [(1, 2, 2)], base_features=4)
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
masks = DSFF(density=0.5, update_every=2).attach(model, optimizer, total_steps=4)
for _ in range(4):
    heads = model(torch.randn(1, 1, 4, 8, 8))
    sum(head.square().mean() for head in heads).backward()
    optimizer.step()
    optimizer.zero_grad()
assert masks.num_updates == 1
model.eval()
x = torch.randn(1, 1, 4, 8, 8)
difference = (compact(model)(x) - model(x)).abs().max().item()
assert difference < 1e-4, difference
select_training(model.train(), "auto", amp_dtype=None)
print(count_cost(model, (4, 8, 8)).params)
"""


def test_nothing_but_the_base_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ONLY_BASE + USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 0
