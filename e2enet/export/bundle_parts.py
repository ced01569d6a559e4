"""The parts of a MONAI bundle that are ours: the list of scans, the network, two transforms. Configs name them.

They are given plain values, as a JSON file holds them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel import orientations
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import Geometry, Unit
from e2enet.data.formats.volume import Volume, read_volume, to_frame, to_native
from e2enet.data.layouts.prediction import find_cases
from e2enet.data.layouts.stored import stored_layout
from e2enet.data.planning.plan import Plan, integers
from e2enet.data.preparation.preprocess import Preprocessed, preprocess
from e2enet.data.preparation.restore import restore_labels
from e2enet.inference.largest_component import keep_largest
from e2enet.inference.windows import mirror_subsets
from e2enet.network.build import build_network, trust_network


def find_scans(
    folder: str | Path,
    channels: Sequence[str],
    file_ending: str = ".nii.gz",
    numbered_ids: bool = False,
    layout: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return {"image": files, "case": id} of each scan in a folder, or of one file, as `e2enet predict` finds them.

    `layout` is the section of the training data's layout with its class under `layout` instead of `_target_`.
    """
    layouts = []
    if layout is not None:
        arguments = {key: value for key, value in layout.items() if key != "layout"}
        layouts.append(stored_layout({"_target_": layout["layout"], **arguments}))
    cases = find_cases(folder, channels, file_ending, None, numbered_ids, layouts)
    return [{"image": [str(file) for file in case.images], "case": case.id} for case in cases]


class WindowProbabilities(nn.Module):
    """A network that returns probabilities, averaged over mirrored copies of its input, as windows are blended by them.

    Args:
        network: its settings, with its class under `name`.
        channels: names of the input's channels.
        num_outputs: classes, background included, or regions.
        strides, patch_size: of the plan.
        mirror_axes: among 0, 1, 2 = D, H, W; the mean is over all subsets of them.
        sigmoid: the outputs are regions that may overlap.

    Input (B, C, D, H, W), output (B, num_outputs, D, H, W).
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        channels: Sequence[str],
        num_outputs: int,
        strides: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        mirror_axes: Sequence[int] = (),
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        trust_network(str(network["name"]))  # a bundle's config is code: whoever runs it trusts it
        self.network = build_network(
            network, in_channels=len(channels), num_classes=num_outputs, strides=strides, patch_size=patch_size
        )
        self.flips = [[axis + 2 for axis in axes] for axes in mirror_subsets(mirror_axes)]
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        # A MetaTensor would keep its record of operations through every layer.
        x = x.as_tensor() if isinstance(x, MetaTensor) else x
        total = self._probabilities(x, self.flips[0])
        for axes in self.flips[1:]:
            total += self._probabilities(x, axes)
        return total / len(self.flips)

    def _probabilities(self, x: Tensor, axes: list[int]) -> Tensor:
        logits = self.network(x.flip(axes)).float()
        return (logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)).flip(axes)


class PreprocessScand(MapTransform):
    """Scan -> the network's input, a MetaTensor (C, d, h, w) float32 in the frame of the plan, as in training.

    The value of each key is a file, a list with a file per channel, or an image that LoadImaged and EnsureChannelFirstd
    have read, (C, X, Y, Z) with its affine. The result's affine is that of its own grid. Its `meta` also holds what
    `RestoreLabelsd` needs.

    Args:
        keys: keys of the data.
        plan: as in plan.json.
        unit: of lengths in the files, "m", "mm" or "um"; None for that of each header.
        file_axes: the frame keeps the axes of the files, as for models of nnU-Net.

    Raises:
        InputError: names the file; it cannot be read or used (`read_volume`, `preprocess`).
    """

    def __init__(
        self,
        keys: Any,
        plan: Mapping[str, Any],
        unit: str | None = None,
        file_axes: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if unit is not None and unit not in get_args(Unit):
            raise InputError(f"unit={unit}: one of {', '.join(get_args(Unit))} or null expected")
        self.plan = Plan.from_dict(plan)
        self.unit, self.file_axes = cast("Unit | None", unit), file_axes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._preprocess(result[key], result.get("case"))
        return result

    def _preprocess(self, value: Any, case: str | None) -> MetaTensor:
        if isinstance(value, MetaTensor):
            volume, name = self._volume_of(value), str(value.meta.get("filename_or_obj", "image"))
        else:
            files = [value] if isinstance(value, str | Path) else list(value)
            volume = read_volume(files, self.plan.depth_axis, self.unit, file_axes=self.file_axes)
            name = str(files[0])
        try:
            prepared = preprocess(volume, self.plan)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        geometry = volume.geometry
        meta = {
            "filename_or_obj": name if case is None else f"{case}.nii.gz",
            "scan_affine": torch.as_tensor(geometry.affine),
            "scan_shape": torch.tensor(geometry.shape),
            "scan_crop": torch.tensor([[part.start, part.stop] for part in prepared.crop]),
        }
        return MetaTensor(torch.as_tensor(prepared.image), affine=_affine_of(prepared, geometry), meta=meta)

    def _volume_of(self, image: MetaTensor) -> Volume:
        """Return an image (C, X, Y, Z), whose affine is in RAS, in the frame."""
        if image.ndim != 4:
            shape = tuple(image.shape)
            raise InputError(f"an image of shape {shape}: (C, X, Y, Z) expected, as EnsureChannelFirstd gives")
        array = image.as_tensor().cpu().numpy().astype(np.float32)
        affine = image.affine.cpu().numpy().astype(float)
        geometry = Geometry(integers(array.shape[1:]), affine, self.plan.depth_axis, self.file_axes)
        return Volume(np.stack([to_frame(channel, geometry) for channel in array]), geometry.spacing, geometry)


class RestoreLabelsd(MapTransform):
    """Probabilities on the network's grid -> labels (1, X, Y, Z) on that of the scan, as `e2enet predict` writes them.

    They are resampled linearly, plane by plane. The result is a MetaTensor uint8 (int16 above 255) with the scan's
    affine and file name, which SaveImaged writes.

    Args:
        keys: of the probabilities (K, d, h, w), MetaTensors with the `meta` of `PreprocessScand`.
        plan: as in plan.json.
        regions_class_order: the label that each region is written as; empty for classes.
        keep_largest: lists of labels, of which only the largest component is kept.
        file_axes: as for `PreprocessScand`.
    """

    def __init__(
        self,
        keys: Any,
        plan: Mapping[str, Any],
        regions_class_order: Sequence[int] = (),
        keep_largest: Sequence[Sequence[int]] = (),
        file_axes: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.plan = Plan.from_dict(plan)
        self.order = tuple(regions_class_order)
        self.largest, self.file_axes = [tuple(united) for united in keep_largest], file_axes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._restore(result[key])
        return result

    def _restore(self, probabilities: MetaTensor) -> MetaTensor:
        meta = probabilities.meta
        affine = np.asarray(meta["scan_affine"], dtype=float)
        geometry = Geometry(integers(meta["scan_shape"]), affine, self.plan.depth_axis, self.file_axes)
        depths, rows, columns = (slice(int(start), int(stop)) for start, stop in meta["scan_crop"])
        planes = probabilities.as_tensor()
        prepared = Preprocessed(
            planes.cpu().numpy(), (depths, rows, columns), geometry.frame_shape, geometry.spacing, self.plan.spacing
        )
        labels = keep_largest(restore_labels(planes.unbind(1), prepared, order=self.order), self.largest)
        native = torch.from_numpy(to_native(labels, geometry))[None]
        kept = {"filename_or_obj": meta["filename_or_obj"], "spatial_shape": geometry.shape}
        return MetaTensor(native, affine=torch.as_tensor(affine), meta=kept)


def _affine_of(prepared: Preprocessed, geometry: Geometry) -> Tensor:
    """Return the affine (4, 4), voxel (d, h, w) of the network's grid -> mm."""
    # Voxel i of the new grid lies at (i + 1/2) * old / new - 1/2 of the crop.
    ratio = np.array(prepared.cropped_shape) / prepared.image.shape[1:]
    within = np.diag([*ratio, 1.0])
    within[:3, 3] = ratio / 2 - 0.5 + [part.start for part in prepared.crop]
    axes = [geometry.depth_axis, *(axis for axis in range(3) if axis != geometry.depth_axis)]
    to_ras = np.zeros((4, 4))
    to_ras[axes, range(3)] = to_ras[3, 3] = 1  # (D, H, W) -> RAS order; the orientation then leads to the file's axes
    to_file = orientations.inv_ornt_aff(geometry.orientation, geometry.shape)
    return torch.as_tensor(geometry.affine @ to_file @ to_ras @ within)
