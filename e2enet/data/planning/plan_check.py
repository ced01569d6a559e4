"""Checks a plan that was read from a checkpoint or an edited file, with a message for every problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from e2enet.data.planning.topology import round_down, round_up, total_stride

Test = Callable[[Any], bool]


def plan_problems(content: Mapping[str, Any]) -> list[str]:
    """Return the problems of a plan in plain containers, a line per key with its value and the expected one."""
    problems = [
        f"{name}: is missing, {expected} expected" for name, (_, expected) in KEYS.items() if name not in content
    ]
    for name, value in content.items():
        if name not in KEYS:
            problems.append(f"{name}: unknown key; known are {', '.join(KEYS)}")
        elif not KEYS[name][0](value):
            problems.append(f"{name} is {value!r}: {KEYS[name][1]} expected")
    if not problems:
        problems += _patch_problems(content["patch_size"], content["strides"])
        problems += [
            text for index, one in enumerate(content["normalisation"]) for text in _scheme_problems(index, one)
        ]
    return problems


def _patch_problems(patch: Any, strides: Any) -> Iterator[str]:
    total = total_stride(strides)
    if any(edge % step for edge, step in zip(patch, total, strict=True)):
        lower, upper = (list(nearest(patch, total)) for nearest in (round_down, round_up))
        yield (
            f"patch_size is {list(patch)}: a multiple of {list(total)}, the product of the strides, expected, "
            f"such as {lower} or {upper}"
        )


def _scheme_problems(index: int, scheme: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the normalisation of channel `index`."""
    name = f"normalisation[{index}]"
    known = SCHEMES.get(str(scheme.get("scheme")))
    if known is None:
        yield f"{name} is {dict(scheme)}: a scheme out of {', '.join(SCHEMES)} expected"
        return
    if set(scheme) != {"scheme", *known}:
        found = sorted(map(str, scheme))
        yield f"{name} has the keys {found}: {sorted(['scheme', *known])} expected for {scheme['scheme']}"
        return
    for key, (accepts, expected) in known.items():
        if not accepts(scheme[key]):
            yield f"{name}.{key} is {scheme[key]!r}: {expected} expected"
    limits: list[Any] = [scheme.get("lower"), scheme.get("upper")]
    if all(map(_is_number, limits)) and limits[0] >= limits[1]:
        yield f"{name}.lower is {limits[0]}: less than upper, {limits[1]}, expected"


def _is_number(value: Any) -> bool:
    # Compared, since math.isfinite raises for a whole number that is too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_millimetres(value: Any) -> bool:
    return _is_number(value) and MIN_MM <= value <= MAX_MM


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_VOXELS


def _three(test: Test) -> Test:
    return lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(test, value))


def _several(test: Test) -> Test:
    return lambda value: isinstance(value, list | tuple) and len(value) >= 1 and all(map(test, value))


# No scan and no machine reaches these. Beyond them, products overflow and volumes have no usable size.
MAX_NUMBER = 1e30
MIN_MM, MAX_MM = 1e-4, 1e4
MAX_VOXELS = 2**20
MAX_STRIDES = 16
VOXELS = (_three(_is_count), f"three whole numbers of voxels >= 1 (D, H, W), up to {MAX_VOXELS},")
KEYS: dict[str, tuple[Test, str]] = {
    "depth_axis": (lambda v: v in (0, 1, 2) and not isinstance(v, bool | float), "0, 1 or 2"),
    "spacing": (_three(_is_millimetres), f"three numbers of mm > 0 (D, H, W), {MIN_MM:g} to {MAX_MM:g},"),
    "patch_size": VOXELS,
    "strides": (
        lambda v: _several(_three(_is_count))(v) and len(v) <= MAX_STRIDES,
        f"one triple of whole numbers >= 1 (D, H, W) per level but the first, up to {MAX_STRIDES} of them,",
    ),
    "batch_size": (_is_count, "a whole number >= 1"),
    "normalisation": (_several(lambda v: isinstance(v, Mapping)), "one object with a scheme per channel"),
    "median_shape": VOXELS,
}
NUMBER = (_is_number, "a number")
SCHEMES: dict[str, dict[str, tuple[Test, str]]] = {
    "ct": {
        "lower": NUMBER,
        "upper": NUMBER,
        "mean": NUMBER,
        "std": (lambda v: _is_number(v) and v >= 0, "a number >= 0"),
    },
    "zscore": {"nonzero": (lambda v: isinstance(v, bool), "true or false")},
    "none": {},
}
