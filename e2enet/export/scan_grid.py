"""Bring a scan to the grid of a network, into windows, and the result back, with numpy and SimpleITK alone.

`model` is the content of model.json. `export --to onnx` copies this file, which imports nothing of its package.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813

ROUNDING = 1e-6  # of voxel sizes in float32 headers, as a fraction
MILLIMETRES = {"m": 1e3, "mm": 1.0, "um": 1e-3}
UNITS = {1: "m", 3: "um"}  # codes of NIfTI headers; all others mean mm


class Scan(NamedTuple):
    """A scan in the network's frame: RAS orientation (the file's own with `file_axes`), the plan's depth axis first.

    `array` is (C, D, H, W) float32, `spacing` in mm along (D, H, W), `crop` the box of its nonzero voxels, `axes` the
    axes of `oriented` that are D, H and W. `image` is the first channel as read, `oriented` the same in RAS.
    """

    array: np.ndarray
    spacing: np.ndarray
    crop: tuple[slice, ...]
    axes: list[int]
    image: Any
    oriented: Any


def read_scan(files: list[str], model: dict[str, Any]) -> Scan:
    """Read a scan from one file with all channels or from a file per channel."""
    images = [channel for file in files for channel in read_channels(file, model["spacing_unit"])]
    if len(images) != len(model["channels"]):
        raise SystemExit(f"{files}: {len(images)} channels, {len(model['channels'])} expected: {model['channels']}")
    grids = [[*one.GetSize(), *one.GetSpacing(), *one.GetOrigin(), *one.GetDirection()] for one in images]
    if any(not np.allclose(grids[0], grid, rtol=0, atol=1e-3) for grid in grids):
        raise SystemExit(f"{files}: differ in their grids; channels on one grid expected")
    oriented = images if model["file_axes"] else [sitk.DICOMOrient(image, "RAS") for image in images]
    depth = model["plan"]["depth_axis"]
    axes = [depth, *(axis for axis in range(3) if axis != depth)]
    array = np.stack([sitk.GetArrayFromImage(image).T.transpose(axes) for image in oriented])
    if not np.isfinite(array).all() or not array.any():
        raise SystemExit(f"{files}: finite values expected, of which some are not zero")
    crop = tuple(slice(place.min(), place.max() + 1) for place in np.nonzero((array != 0).any(0)))
    return Scan(array, np.array(oriented[0].GetSpacing())[axes], crop, axes, images[0], oriented[0])


def read_channels(file: str, unit: str | None) -> list[Any]:
    """Read a file's channels, a fourth axis or the components of its voxels, as 3D images in mm.

    `unit` is that of the file's lengths, None if its header says it. ITK reads a NIfTI file by its header's unit, and
    takes any orientation if the header has none (both codes 0): there it is set to nibabel's, left, front and up, with
    the centre at 0.
    """
    try:
        whole = sitk.ReadImage(file, sitk.sitkVectorFloat32)
    except RuntimeError as error:
        raise SystemExit(f"{file}: cannot be read: {str(error).splitlines()[-1]}") from error
    size = whole.GetSize()
    if len(size) < 3 or sum(edge > 1 for edge in size[3:]) > 1:
        raise SystemExit(f"{file}: shape {size}; a 3D image, or a 4D one with channels last expected")
    parts = [whole[(slice(None),) * 3 + place] for place in np.ndindex(size[3:])]
    components = range(whole.GetNumberOfComponentsPerPixel())
    images = [sitk.VectorIndexSelectionCast(part, component) for part in parts for component in components]
    tags = whole.GetMetaDataKeys() if file.endswith((".nii", ".nii.gz")) else ()  # other formats may keep a NIfTI's
    header = {tag: whole.GetMetaData(tag) for tag in tags}
    read_as = UNITS.get(int(header.get("xyzt_units", 0)) & 7, "mm")
    scale = MILLIMETRES[unit or read_as] / MILLIMETRES[read_as]
    for image in images:
        image.SetSpacing(scale * np.array(image.GetSpacing()))
        image.SetOrigin(scale * np.array(image.GetOrigin()))
        if header.get("sform_code") == header.get("qform_code") == "0":
            image.SetDirection([1, 0, 0, 0, -1, 0, 0, 0, 1])
            image.SetOrigin(np.array(image.GetSpacing()) * (np.array(size[:3]) - 1) / 2 * [-1, 1, -1])
    return images


def prepare(scan: Scan, model: dict[str, Any]) -> np.ndarray:
    """Return the network's input (C, d, h, w): cropped, normalised and resampled to the plan's spacing."""
    plan, box = model["plan"], (slice(None), *scan.crop)
    array = scan.array[box]
    target = np.array(plan["spacing"])
    shape = [max(1, round(round(n, 4))) for n in scan.spacing / target * array.shape[1:]]
    mask = sitk.GetImageFromArray((array != 0).any(0).astype(np.uint8))
    inside = sitk.GetArrayFromImage(sitk.BinaryFillhole(mask, foregroundValue=1)) > 0
    channels = [normalise(channel, way, inside) for channel, way in zip(array, plan["normalisation"], strict=True)]
    channels = [np.clip(resample(c, shape, scan.spacing, target, 3), c.min(), c.max()) for c in channels]
    return np.stack(channels).astype(np.float32)


def pad_to_patch(image: np.ndarray, patch: Sequence[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return an image (C, D, H, W) with zeros around it, no smaller than a patch, and where the image lies in it."""
    missing = [max(edge - size, 0) for edge, size in zip(patch, image.shape[1:], strict=True)]
    margins = [(0, 0), *((part // 2, part - part // 2) for part in missing)]
    place = tuple(slice(first, first + size) for (first, _), size in zip(margins, image.shape, strict=True))
    return np.pad(image, margins), (slice(None), *place[1:])


def windows(shape: Sequence[int], patch: Sequence[int], step: float) -> Iterator[tuple[slice, ...]]:
    """Yield boxes (C, D, H, W) of a patch that cover an image, `step` of a patch apart; the last end where it ends."""
    ends = [size - edge for size, edge in zip(shape, patch, strict=True)]
    starts = [(*range(0, end, max(int(edge * step), 1)), end) for end, edge in zip(ends, patch, strict=True)]
    for corner in itertools.product(*starts):
        yield (slice(None), *(slice(first, first + edge) for first, edge in zip(corner, patch, strict=True)))


def gaussian_weights(patch: Sequence[int]) -> np.ndarray:
    """Return weights (D, H, W) of a patch's voxels: 1 in the centre, sigma an eighth of each edge, at least 1e-3."""
    curves = [np.exp(-32 * ((np.arange(edge) - (edge - 1) / 2) / edge) ** 2) for edge in patch]
    return np.maximum(np.einsum("d,h,w", *curves), 1e-3).astype(np.float32)


def mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the axes of (C, D, H, W) to flip for every way to mirror an image along some of `axes` of (D, H, W)."""
    for chosen in itertools.product(*(((), (axis + 1,)) for axis in axes)):
        yield sum(chosen, ())


def restore(probabilities: np.ndarray, scan: Scan, model: dict[str, Any]) -> Any:
    """Return the label image on the scan's own grid of the network's probabilities (K, d, h, w)."""
    shape = [part.stop - part.start for part in scan.crop]
    found = resample(probabilities, shape, np.array(model["plan"]["spacing"]), scan.spacing, 1)
    highest = max(*map(int, model["labels"]), *model["regions_class_order"])
    labels = np.zeros(scan.array.shape[1:], np.uint8 if highest < 256 else np.int16)
    inside = labels[scan.crop]
    if model["regions"]:
        for region, label in zip(found, model["regions_class_order"], strict=True):
            inside[region > 0.5] = label
    else:
        inside[:] = found.argmax(0)
    labels = keep_largest(labels, model["keep_largest"])
    image = sitk.GetImageFromArray(labels.transpose(np.argsort(scan.axes)).T)
    image.CopyInformation(scan.oriented)
    if not model["file_axes"]:
        own = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(scan.image.GetDirection())
        image = sitk.DICOMOrient(image, own)
    image.CopyInformation(scan.image)
    return image


def normalise(channel: np.ndarray, way: dict[str, Any], inside: np.ndarray) -> np.ndarray:
    """Normalise a channel (D, H, W) as in training: a CT by numbers of the dataset, else by the scan's own."""
    if way["scheme"] == "ct":
        return (np.clip(channel, way["lower"], way["upper"]) - np.float32(way["mean"])) / np.float32(
            max(way["std"], 1e-8)
        )
    if way["scheme"] == "none":
        return channel
    inside = inside if way["nonzero"] else np.ones_like(inside)
    mean, std = channel[inside].mean(dtype=float), channel[inside].std(dtype=float)
    return (channel - np.float32(mean)) / np.float32(max(std, 1e-8)) * inside


def resample(volume: np.ndarray, shape: list[int], old: np.ndarray, new: np.ndarray, order: int) -> np.ndarray:
    """Resample the last three axes from the spacing `old` to `new` (mm).

    Along the one axis that is more than three times coarser than the finest, the nearest slice is taken.
    """
    uneven = next((spacing for spacing in (old, new) if spacing.max() > 3 * (1 + ROUNDING) * spacing.min()), None)
    coarse = [] if uneven is None else np.flatnonzero(uneven >= uneven.max() * (1 - ROUNDING)).tolist()
    for axis, (before, after) in enumerate(zip(volume.shape[-3:], shape, strict=True)):
        if before != after:
            matrix = axis_matrix(before, after, 0 if coarse == [axis] else order).astype(np.float32)
            volume = np.moveaxis(np.tensordot(matrix, volume, (1, axis - 3)), 0, axis - 3)
    return volume


def axis_matrix(old: int, new: int, order: int) -> np.ndarray:
    """Return the matrix (new, old) that interpolates along an axis: order 0 nearest, 1 linear, 3 cubic splines.

    Voxel i of the new axis lies at (i + 1/2) * old / new - 1/2 of the old one, which goes on with its last voxels.
    """
    centre = (np.arange(new)[:, None] + 0.5) * old / new
    if order == 0:
        return np.eye(old)[np.minimum(np.floor(centre[:, 0]).astype(int), old - 1)]
    if order == 1:
        return np.maximum(1 - abs(np.clip(centre - 0.5, 0, old - 1) - np.arange(old)), 0)
    knots = np.arange(-12, old + 12)  # 12 voxels further on, a spline no longer feels where they end
    away = abs(centre - 0.5 - knots)
    basis = np.where(away < 1, 4 - 6 * away**2 + 3 * away**3, np.maximum(2 - away, 0) ** 3)
    system = np.maximum(2 - abs(knots[:, None] - knots), 0) ** 3 - 4 * np.eye(len(knots))  # 4 on the diagonal, 1 beside
    return basis @ np.linalg.solve(system, np.eye(old)[np.clip(knots, 0, old - 1)])


def keep_largest(labels: np.ndarray, classes: list[list[int]]) -> np.ndarray:
    """Return a copy of a label map with only the largest component of each of the classes (lists of labels)."""
    result = labels.copy()
    for united in classes:
        mask = sitk.GetImageFromArray(np.isin(labels, united).astype(np.uint8))
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(mask, True))
        sizes = np.bincount(parts.ravel())
        result[(parts > 0) & (sizes[parts] < sizes[1:].max(initial=0))] = 0
    return result
