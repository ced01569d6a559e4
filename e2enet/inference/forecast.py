"""What predicting a case will take of the memory, told from its header before it starts; what cannot fit is refused.

A spacing that nobody measured (a header in other units than it says) makes a scan of no voxel or of a hundred thousand
along an edge at the model's spacing. The first would be an empty result, the second the end of the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from e2enet.common.errors import InputError
from e2enet.common.memory import available_memory, give_back_freed_memory
from e2enet.common.workload import gigabytes
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import Geometry, read_geometry
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.inference.checkpoint import LoadedModel

FLOAT_BYTES = 4


def require_room(case: Case, model: LoadedModel) -> None:
    """InputError, with file, spacing and size, where a case has no voxel left along an axis at the model's spacing, or
    needs more memory than there is. It reads headers alone."""
    plan = model.plan
    geometry = read_geometry(case.images[0], plan.depth_axis)
    files, target = ", ".join(map(str, case.images)), f"the model's spacing, {_spell(plan.spacing)} mm"
    place = f"{files}: {_spell(geometry.frame_shape)} voxels (D, H, W) of {_spell(geometry.spacing)} mm"
    edges = zip("DHW", geometry.frame_shape, geometry.spacing, plan.spacing, strict=True)
    # One slice stays one slice, however thin it is.
    lost = [axis for axis, voxels, old, new in edges if voxels > 1 and round(old / new * voxels) < 1]
    if lost:
        raise InputError(
            f"{place} are less than one along {', '.join(lost)} at {target}: is the header's spacing right?"
        )
    needed = forecast_memory(geometry, plan, len(model.channels), len(model.labels))
    if needed > available_memory():
        give_back_freed_memory()  # of earlier cases
        free = available_memory()
        if needed > free:
            shape = resampled_shape(geometry.frame_shape, geometry.spacing, plan.spacing)
            raise InputError(
                f"{place} are {_spell(shape)} at {target}: predicting takes at least {gigabytes(needed)} of memory, "
                f"{gigabytes(free)} are free"
            )


def forecast_memory(geometry: Geometry, plan: Plan, channels: int, classes: int) -> int:
    """Bytes that predicting takes at least, beside the networks: what is certain to be held at once, uncropped.

    First the scan in float32, the normalised copy of a channel and the resampled channels; later these, the sums of
    the classes for as many planes as a window is deep (on the CPU, where a GPU has no room), two planes of classes at
    the scan's own size, and its labels.
    """
    shape = resampled_shape(geometry.frame_shape, geometry.spacing, plan.spacing)
    padded = [max(edge, patch) for edge, patch in zip(shape, plan.patch_size, strict=True)]
    raw, small = math.prod(geometry.frame_shape), math.prod(shape)
    preparing = raw * (channels + 1) + small * channels
    sums = plan.patch_size[0] * (classes + 1) * padded[1] * padded[2]
    planes = 2 * classes * math.prod(geometry.frame_shape[1:])
    predicting = (small + math.prod(padded) * (padded != list(shape))) * channels + sums + planes + raw // FLOAT_BYTES
    return FLOAT_BYTES * max(preparing, predicting)


def _spell(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
