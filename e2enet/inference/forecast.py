"""Forecast the memory of predicting a case, and refuse a case that cannot fit.

A wrong spacing (a header in other units than it says) gives a scan with no voxel, or a hundred thousand, along an edge
at the model's spacing. The first would give an empty result, the second would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from e2enet.common.errors import InputError
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import Geometry, Volume, crop_to_nonzero, read_geometry
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.inference.checkpoint import LoadedModel
from e2enet.system.memory import available_memory, give_back_freed_memory
from e2enet.system.workload import gigabytes

FLOAT_BYTES = 4


def require_room_to_read(case: Case, model: LoadedModel) -> None:
    """Check from its header that a case can be read; voxels are not loaded.

    Raises:
        InputError: with file, spacing and size. The case has no voxel left along an axis at the model's spacing, or its
            voxels alone need more memory than is free.
    """
    plan = model.plan
    geometry = read_geometry(case.images[0], plan.depth_axis, case.unit, file_axes=model.file_axes)
    place = f"{', '.join(map(str, case.images))}: {_spell_scan(geometry)}"
    edges = zip("DHW", geometry.frame_shape, geometry.spacing, plan.spacing, strict=True)
    # One slice stays one slice, however thin it is.
    lost = [axis for axis, voxels, old, new in edges if voxels > 1 and round(old / new * voxels) < 1]
    if lost:
        raise InputError(
            f"{place} are less than one along {', '.join(lost)} at {_target(plan)}: is the header's spacing right?"
        )
    needed = FLOAT_BYTES * math.prod(geometry.frame_shape) * len(model.channels)
    free = _free_memory(needed)
    if needed > free:
        raise InputError(f"{place} take {gigabytes(needed)} of memory, {gigabytes(free)} are free")


def require_room_to_predict(volume: Volume, model: LoadedModel) -> None:
    """Check that there is enough memory to predict a scan that was read.

    Its margin of zeros, which preprocessing crops, is only searched if the whole scan would not fit.

    Raises:
        InputError: with spacing and size, if predicting needs more memory than is free.
    """
    plan, geometry, held = model.plan, volume.geometry, volume.array.nbytes
    whole = geometry.frame_shape

    def needed(cropped: Sequence[int]) -> int:
        return forecast_memory(whole, cropped, geometry.spacing, plan, len(model.channels), model.scheme.num_outputs)

    if needed(whole) <= available_memory() + held:
        return
    cropped = [part.stop - part.start for part in crop_to_nonzero(volume.array)]
    most = needed(cropped)
    free = _free_memory(most - held) + held
    if most > free:
        shape = resampled_shape(cropped, geometry.spacing, plan.spacing)
        without = " without their margin of zeros" if tuple(cropped) != whole else ""
        raise InputError(
            f"{_spell_scan(geometry)} are {_spell(shape)} at {_target(plan)}{without}: predicting takes at least "
            f"{gigabytes(most)} of memory, {gigabytes(free)} are free"
        )


def forecast_memory(
    whole: Sequence[int], cropped: Sequence[int], spacing: Sequence[float], plan: Plan, channels: int, classes: int
) -> int:
    """Return the bytes that predicting takes at least, without the networks: what is certainly held at once.

    While preparing, this is the whole scan (D, H, W) in float32, the normalised copy of a cropped channel and the
    resampled channels. While predicting, it is the resampled channels, the sums of the classes for as many planes as a
    window is deep (on the CPU if a GPU has no room), two planes of classes at the scan's own size, and its labels.
    """
    shape = resampled_shape(cropped, spacing, plan.spacing)
    padded = [max(edge, patch) for edge, patch in zip(shape, plan.patch_size, strict=True)]
    raw, small = math.prod(whole), math.prod(shape)
    preparing = raw * channels + math.prod(cropped) + small * channels
    sums = plan.patch_size[0] * (classes + 1) * padded[1] * padded[2]
    planes = 2 * classes * math.prod(cropped[1:])
    predicting = (small + math.prod(padded) * (padded != list(shape))) * channels + sums + planes + raw // FLOAT_BYTES
    return FLOAT_BYTES * max(preparing, predicting)


def _free_memory(needed: int) -> int:
    """Return the free bytes; if they are fewer than `needed`, first release the memory of earlier cases."""
    free = available_memory()
    if needed > free:
        give_back_freed_memory()
        free = available_memory()
    return free


def _target(plan: Plan) -> str:
    return f"the model's spacing, {_spell(plan.spacing)} mm"


def _spell_scan(geometry: Geometry) -> str:
    return f"{_spell(geometry.frame_shape)} voxels (D, H, W) of {_spell(geometry.spacing)} mm"


def _spell(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
