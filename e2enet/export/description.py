"""What a model expects and returns, as one JSON object for programs that know nothing of this package."""

from __future__ import annotations

from typing import Any

from e2enet.data.formats.grid import AXIS_NAMES
from e2enet.export.plain_network import size_steps
from e2enet.inference.checkpoint import LoadedModel
from e2enet.inference.largest_component import find_postprocessing, require_labels


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """Return plan, channels, labels and the settings of prediction as plain containers.

    Keys: `channels` (names in order), `labels` (value -> name), `regions` (name -> labels) and `regions_class_order`
    for a network of overlapping regions, `plan` (as plan.json: depth axis, spacing in mm, patch size, strides,
    normalisation), `size_steps` (what input sizes are multiples of), `mirror_axes`, `step` (distance of windows as a
    share of the patch), `keep_largest` (lists of labels, of which only the largest component is kept), `file_axes`
    (whether axes are named in the order of the file instead of RAS), `spacing_unit` (m, mm or um if lengths in the
    scans' files count in it whatever their headers say, else null).
    """
    scheme = model.scheme
    return {
        "channels": list(model.channels),
        "labels": {str(label): name for label, name in scheme.names.items()},
        "regions": {name: list(united) for name, united in scheme.regions.items()},
        "regions_class_order": list(scheme.order),
        "plan": model.plan.to_dict(),
        "size_steps": list(size_steps(model.plan)),
        "mirror_axes": list(model.mirror_axes),
        "step": 0.5,
        "keep_largest": keep_largest_of(model),
        "file_axes": model.file_axes,
        "spacing_unit": model.spacing_unit,
    }


def keep_largest_of(model: LoadedModel) -> list[list[int]]:
    """Return the classes of which prediction keeps the largest component, each as a list of labels.

    They are those that `predict` finds for the model's run (`postprocessing=auto`).
    """
    choice = find_postprocessing([model.path.resolve().parent.parent])
    if choice is None:
        return []
    require_labels(choice, model.scheme)
    return [[label] if isinstance(label, int) else list(label) for label in choice.classes]


def model_words(model: LoadedModel) -> dict[str, str]:
    """Return how texts about a model call its classes, channels, table of labels, patch, order of axes and depth axis.

    Axes of a model with `file_axes` lie in any direction of the body, so they are numbered, not named.
    """
    names, channels, depth_axis = model.scheme.names, model.channels, model.plan.depth_axis
    return {
        "classes": ", ".join(name for label, name in names.items() if label != 0),
        "channels": f"the channel{'s' * (len(channels) > 1)} {', '.join(channels)}",
        "label_rows": "\n".join(f"| {label} | {name} |" for label, name in names.items()),
        "patch": " x ".join(map(str, model.plan.patch_size)),
        "order": "the order of the file" if model.file_axes else "RAS order",
        "axis": f"axis {depth_axis} of the file" if model.file_axes else f"the {AXIS_NAMES[depth_axis]} axis",
    }
