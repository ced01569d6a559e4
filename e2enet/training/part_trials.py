"""Trial of a config's loss, optimizer and schedule on a few voxels, before any data is prepared.

Problems are reported with the part's own error message. A signature alone does not tell that ReduceLROnPlateau needs a
score at each step, that Muon only takes matrices, or that a loss expects targets with a channel axis.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.optim import Optimizer

from e2enet.common.errors import first_line
from e2enet.training.losses import DeepSupervisionLoss
from e2enet.training.step_parts import STEP_PARTS, build_schedule, taking_labels

# (B, K, D, H, W) of a tried head. All sizes differ, so that nothing fits by broadcasting.
BATCH, CLASSES, SIZE = 2, 3, (4, 6, 8)


def part_problems(training: Mapping[str, Any], device: str = "cpu") -> Iterator[str]:
    """Yield the problems of a loss, optimizer and schedule that no training step could use.

    Args:
        training: the `training` section in plain containers, with signatures and values already checked.
        device: where training will run.
    """
    kept = {key: training[key] for key in (*STEP_PARTS, "epochs", "steps_per_epoch", "accumulate")}
    yield from _part_problems(json.dumps(kept), device)


@cache  # called for every job of a sweep
def _part_problems(settings: str, device: str) -> tuple[str, ...]:
    return tuple(_find_problems(json.loads(settings), device))


def _find_problems(training: Mapping[str, Any], device: str) -> Iterator[str]:
    losses = [partial(_try_loss, training["loss"], classes, device) for classes in _classes(training)]
    problem = _first_problem(losses)
    if problem:
        yield _told("loss", training, problem, "loss(logits, target) as one number")
    problem = _problem(lambda: _try_optimizer(training["optimizer"], device))
    if problem:
        expected = "an optimizer of convolutions, norms and biases"
        yield _told("optimizer", training, problem, expected)
        return
    problem = _problem(lambda: _try_schedule(training, device))
    if problem:
        interval = training["schedule"].get("interval", "epoch")
        length = f"{run_length(training, interval)} {interval}s"
        expected = f"a schedule for a run of {length}, by their number alone, or by a score that `monitor` names"
        yield _told("schedule", training, problem, expected)


def _try_loss(section: Mapping[str, Any], classes: int, device: str) -> None:
    logits = torch.linspace(-1, 1, BATCH * classes * SIZE[0] * SIZE[1] * SIZE[2], device=device)
    logits = logits.reshape(BATCH, classes, *SIZE).requires_grad_()
    target = torch.zeros(BATCH, *SIZE, dtype=torch.int64, device=device)
    target[:, 1] = 1
    # The second head has a lower resolution: targets are brought to that of each head.
    loss = DeepSupervisionLoss(taking_labels(instantiate(section))).to(device)([logits, logits[..., ::2, ::2]], target)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise TypeError(f"gave {_described(loss)}")
    loss.backward()


def _try_optimizer(section: Mapping[str, Any], device: str) -> Optimizer:
    layers = nn.Sequential(nn.Conv3d(2, 2, (1, 3, 3)), nn.InstanceNorm3d(2, affine=True)).to(device)
    optimizer = instantiate(section, params=layers.parameters())
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"gave {_described(optimizer)}")

    def closure() -> float:
        optimizer.zero_grad()
        loss = layers(torch.ones(1, 2, 2, 4, 4, device=device)).square().mean()
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    return optimizer


def _try_schedule(training: Mapping[str, Any], device: str) -> None:
    optimizer = _try_optimizer(training["optimizer"], device)
    scheduler, interval = build_schedule(training["schedule"], optimizer, partial(run_length, training))
    score = [0.5] if training["schedule"].get("monitor") else []
    scheduler.step(*score)
    scheduler.last_epoch = run_length(training, interval) - 1  # jump to the last step: there may be 250,000
    scheduler.step(*score)


def run_length(training: Mapping[str, Any], interval: str) -> int:
    """Return the length of the run in epochs or optimizer steps."""
    steps = math.ceil(training["steps_per_epoch"] / training["accumulate"]) if interval == "step" else 1
    return int(training["epochs"] * steps)


def _classes(training: Mapping[str, Any]) -> Sequence[int]:
    """Return the numbers of classes to try a loss with: a default, and the length of each list in its section.

    Class weights may be nested, as in `weight: {_target_: torch.tensor, data: [1.0, 2.0]}`.
    """
    counts, sections = [CLASSES], [training["loss"]]
    for section in sections:  # grows
        counts += [len(value) for value in section.values() if isinstance(value, list) and len(value) > 1]
        sections += [value for value in section.values() if isinstance(value, Mapping)]
    return counts


def _first_problem(attempts: Sequence[Callable[[], object]]) -> str | None:
    """Return None if one of the attempts succeeds, else the problem of the first."""
    problems = [_problem(attempt) for attempt in attempts]
    return None if None in problems else problems[0]


def _problem(attempt: Callable[[], object]) -> str | None:
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            attempt()
    except Exception as error:  # show the user whatever a part raises
        cause = error.__cause__ or error  # Hydra wraps what a constructor raises
        return f"{type(cause).__name__}: {first_line(cause)}"
    return None


def _told(path: str, training: Mapping[str, Any], problem: str, expected: str) -> str:
    target = training[path.rsplit(".", 1)[-1]]["_target_"]
    return f"{path}: {target} cannot be used ({problem}); expected {expected}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" + ("" if value.requires_grad else " without a gradient")
    return type(value).__name__
