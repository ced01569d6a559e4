"""`training.engine=auto` on a GPU, or on a CPU in bfloat16: steps are tried before training, see probe.json."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from e2enet.common.console import say
from e2enet.common.files import write_json
from e2enet.network.dsff import density, fusion_layers, init_masks
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.select import unsupported_in_training
from e2enet.network.engine.vector_code import processor
from e2enet.network.fused.trial import CPU_WAYS, WAYS, Choice, choose_way
from e2enet.network.half_precision import half_precision_pays_on_cpu
from e2enet.training.module import SegmentationModule, amp_dtype_of
from e2enet.training.probe import FILE, read_probe


def choose_engine(trainer: pl.Trainer, module: SegmentationModule, *, measure: bool) -> None:
    """Set `module.way` to the fastest right way to take steps (`fused.trial`), and write all trials to probe.json.

    A resumed run takes the way of its probe.json, if device, torch and workload are the same: it goes on as it began.
    Nothing is tried for another `training.engine`, a network that only torch can train, or on a CPU that computes in
    float32 (`network.half_precision`), where network and machine decide.

    Args:
        measure: whether ways may be tried (`trainer.probe`). If not, a run without a way has none.
    """
    device, network = trainer.strategy.root_device, module.network
    if not _may_choose(module, device):
        return
    assert isinstance(network, E2ENet)
    file = Path(trainer.default_root_dir) / FILE
    own = copy.deepcopy(network).to(device).train()
    if module.final_density is not None:  # the way is for the whole run, most of which has fewer kernels than now
        init_masks(own, module.final_density, generator=torch.Generator().manual_seed(0))
    with trainer.precision_plugin.train_step_context():
        amp_dtype = amp_dtype_of(own)
    if not _has_ways(device, amp_dtype):
        return
    plan = module.plan
    workload = _workload(module, density(own), amp_dtype)
    where = {"device": _name(device), "torch": torch.__version__, "workload": workload}
    before = read_probe(file)
    kept = before.get("engine")
    if isinstance(kept, dict) and {key: kept.get(key) for key in where} == where and kept.get("way") in WAYS:
        module.way = kept["way"]
        return
    if not measure:
        return
    ways = CPU_WAYS if device.type == "cpu" else None
    choice = choose_way(own, batch_size=plan.batch_size, patch_size=plan.patch_size, amp_dtype=amp_dtype, ways=ways)
    module.way = choice.way
    trials = {way: asdict(trial) for way, trial in choice.trials.items()}
    write_json(file, before | {"engine": where | {"way": choice.way, "trials": trials}})
    say(_in_words(choice))


def chosen_engine(training: Mapping[str, Any], run_folder: Path, device: torch.device) -> str:
    """Return the way in which a run took its steps, to run its network after training, see `select_validation`.

    That is `training.engine`; for `auto` the way of the folder's probe.json, if it was found on such a device.
    """
    engine = str(training.get("engine", "dense"))
    kept = read_probe(run_folder / FILE).get("engine")
    if engine == "auto" and isinstance(kept, dict) and kept.get("device") == _name(device) and kept.get("way") in WAYS:
        return str(kept["way"])
    return engine


def _workload(module: SegmentationModule, share: float, amp_dtype: torch.dtype | None) -> str:
    """Describe a step. A start that failed may have left the choice for another one in the folder."""
    plan, count = module.plan, sum(parameter.numel() for parameter in module.network.parameters())
    groups = max((layer.group_size for layer in fusion_layers(module.network).values()), default=1)
    size = " x ".join(map(str, (plan.batch_size, *plan.patch_size)))
    kernels = f"{share:.3g} of its kernels in groups of {groups}"
    return f"network of {count} parameters with {kernels} on {size} in {amp_dtype or torch.float32}"


def _may_choose(module: SegmentationModule, device: torch.device) -> bool:
    training = module.training_config
    if training.get("engine") != "auto" or training.get("compile", False):
        return False
    return unsupported_in_training(module.network, device) is None


def _has_ways(device: torch.device, amp_dtype: torch.dtype | None) -> bool:
    return device.type == "cuda" or (
        device.type == "cpu" and amp_dtype == torch.bfloat16 and half_precision_pays_on_cpu()
    )


def _name(device: torch.device) -> str:
    """Return what times depend on: the GPU, or the processor and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()[0]}, {torch.get_num_threads()} threads"


def _in_words(choice: Choice) -> str:
    told = [
        f"{way} {trial.seconds:.3f} s" if trial.seconds is not None else f"{way} left out"
        for way, trial in choice.trials.items()
    ]
    return f"training.engine=auto takes {choice.way}: a step without the optimizer takes {', '.join(told)}"
