"""E2ENet's arguments under nnU-Net's names: the `arch_kwargs` of a configuration in nnU-Net's plans.

nnU-Net names a stride and a kernel for every stage, the first stride being (1, 1, 1), and channels stage by stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e2enet.common.errors import raise_problems
from e2enet.network.decoders import FusionGrid
from e2enet.network.e2enet import E2ENet

# The network class that nnU-Net's plans name (`network_class_name`).
ADAPTER = "e2enet.nnunet.adapter.E2ENetAdapter"
REQUIRED = ("n_stages", "features_per_stage", "strides")
# E2ENet's own arguments, which nnU-Net does not have. They reach E2ENet as they are.
OWN = ("shift_size", "shift_input", "inner_kernel_size", "fusion")
# E2ENet's layers are always these. nnU-Net's plans say so too, as classes or as dotted names.
LAYERS = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU", "dropout_op": "None"}
FIXED: dict[str, Any] = {
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin_kwargs": {"inplace": True, "negative_slope": 0.01},
    "dropout_op_kwargs": None,
}
BLOCKS = 2  # of every stage of the encoder
# The fusion grid has no decoder stages to count blocks of; the other two are the adapter's.
UNUSED = ("n_conv_per_stage_decoder", "deep_supervision", "engine")
KNOWN = (*REQUIRED, "kernel_sizes", "n_conv_per_stage", *LAYERS, *FIXED, *OWN, *UNUSED)


def e2enet_arguments(arch_kwargs: Mapping[str, Any], source: str = "arch_kwargs") -> dict[str, Any]:
    """Return the arguments of `E2ENet`, without channels and classes, for the `arch_kwargs` of nnU-Net's plans.

    Args:
        arch_kwargs: As in the plans file. Classes may be given as such or by their dotted names.
        source: Where they come from, the start of the error's message.

    Raises:
        InputError: lists every key that is missing or unknown, and every value that E2ENet cannot have.
    """
    problems = [f"{name} is missing" for name in REQUIRED if name not in arch_kwargs]
    problems += [f"{name}: unknown; known are {', '.join(KNOWN)}" for name in arch_kwargs if name not in KNOWN]
    raise_problems(problems, f"{source}: cannot be E2ENet's:")
    stages, strides = arch_kwargs["n_stages"], arch_kwargs["strides"]
    features, kernels = arch_kwargs["features_per_stage"], arch_kwargs.get("kernel_sizes")
    if not isinstance(stages, int) or isinstance(stages, bool) or stages < 2:
        raise_problems([f"n_stages is {stages!r}: a whole number >= 2 expected"], f"{source}: cannot be E2ENet's:")
    problems += _stride_problems(strides, stages)
    problems += _feature_problems(features, stages)
    problems += _kernel_problems(kernels, stages)
    problems += _fixed_problems(arch_kwargs, stages)
    raise_problems(problems, f"{source}: cannot be E2ENet's:")
    arguments = {
        "strides": [[int(step) for step in stride] for stride in strides[1:]],
        "base_features": int(features[0]),
        "max_features": int(max(features)),
        "kernel_size": [int(size) for size in kernels[0]] if kernels is not None else [1, 3, 3],
    }
    return arguments | {name: arch_kwargs[name] for name in OWN if arch_kwargs.get(name) is not None}


def nnunet_arguments(network: E2ENet) -> dict[str, Any]:
    """Return the `arch_kwargs` of nnU-Net's plans that describe a network: the opposite of `e2enet_arguments`.

    Plain lists and numbers, for JSON.
    """
    first: Any = network.encoder[0]
    stages, kernel = len(network.features_per_level), list(first[1].conv.kernel_size)
    arguments: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": list(network.features_per_level),
        "kernel_sizes": [kernel] * stages,
        "strides": [[1, 1, 1], *(list(stride) for stride in network.strides)],
        "n_conv_per_stage": [BLOCKS] * stages,
        "shift_size": first[1].shift_size,
        "shift_input": first[1].shift_size > 1 and first[0].shift_size == first[1].shift_size,
        "fusion": "grid" if isinstance(network.decoder, FusionGrid) else "unet",
    }
    if isinstance(network.decoder, FusionGrid):
        inner: Any = network.decoder.columns[0][0]  # type: ignore[index]
        if list(inner.blocks[0].conv.kernel_size) != kernel:
            arguments["inner_kernel_size"] = list(inner.blocks[0].conv.kernel_size)
    return arguments


def _stride_problems(strides: Any, stages: int) -> list[str]:
    if not _is_table(strides, stages):
        return [f"strides is {strides!r}: {stages} triples of whole numbers >= 1 expected, one for each stage"]
    if list(strides[0]) != [1, 1, 1]:
        return [f"strides[0] is {list(strides[0])}: [1, 1, 1] expected, since E2ENet starts at full resolution"]
    return []


def _feature_problems(features: Any, stages: int) -> list[str]:
    if not _is_list(features) or len(features) != stages or not all(_is_count(one) for one in features):
        return [f"features_per_stage is {features!r}: {stages} whole numbers >= 1 expected, one for each stage"]
    expected = [min(features[0] * 2**stage, max(features)) for stage in range(stages)]
    if list(features) == expected:
        return []
    return [
        f"features_per_stage is {list(features)}: channels that double from stage to stage up to a maximum expected, "
        f"such as {expected}"
    ]


def _kernel_problems(kernels: Any, stages: int) -> list[str]:
    if kernels is None:
        return []
    if not _is_table(kernels, stages):
        return [f"kernel_sizes is {kernels!r}: {stages} triples of whole numbers >= 1 expected, one for each stage"]
    if all(list(kernel) == list(kernels[0]) for kernel in kernels):
        return []
    return [
        f"kernel_sizes is {[list(kernel) for kernel in kernels]}: one size for all stages expected, [1, 3, 3] with the "
        "depth-shift (`e2enet nnunet plans` writes such plans)"
    ]


def _fixed_problems(given: Mapping[str, Any], stages: int) -> list[str]:
    problems = []
    for name, expected in LAYERS.items():
        value = given.get(name, expected)
        found = value.rpartition(".")[2] if isinstance(value, str) else getattr(value, "__name__", str(value))
        if found != expected:
            problems.append(f"{name} is {value!r}: {expected} expected")
    for name, fixed in FIXED.items():
        value = given.get(name, fixed)
        wrong = any(fixed.get(key) != one for key, one in value.items()) if _both_maps(fixed, value) else value != fixed
        if wrong:
            problems.append(f"{name} is {value!r}: {fixed} expected")
    blocks = given.get("n_conv_per_stage", BLOCKS)
    if blocks != BLOCKS and (not _is_list(blocks) or list(blocks) != [BLOCKS] * stages):
        problems.append(f"n_conv_per_stage is {blocks!r}: {BLOCKS} for each of {stages} stages expected")
    return problems


def _both_maps(first: Any, second: Any) -> bool:
    return isinstance(first, Mapping) and isinstance(second, Mapping)


def _is_table(value: Any, rows: int) -> bool:
    return _is_list(value) and len(value) == rows and all(_is_triple(row) for row in value)


def _is_triple(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(_is_count(one) for one in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
