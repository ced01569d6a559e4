"""Segment a scan by the model.onnx and model.json beside this file: python predict.py SCAN [SCAN ..] LABELS

A scan is one file with all channels, or a file per channel. Needs numpy, SimpleITK and onnxruntime.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
import onnxruntime
import SimpleITK as sitk  # noqa: N813
from scan_grid import prepare, read_scan, restore

FOLDER = pathlib.Path(__file__).parent


def predict(session, image, model):
    """Average probabilities (K, D, H, W) over windows, weighted towards their centres, and over mirrored copies."""
    patch = model["plan"]["patch_size"]
    before = [max(edge - size, 0) // 2 for edge, size in zip(patch, image.shape[1:], strict=True)]
    after = [max(edge - size, 0) - part for edge, size, part in zip(patch, image.shape[1:], before, strict=True)]
    image = np.pad(image, [(0, 0), *zip(before, after, strict=True)])
    curves = [np.exp(-32 * ((np.arange(edge) - (edge - 1) / 2) / edge) ** 2) for edge in patch]  # sigma = edge / 8
    weight = np.maximum(np.einsum("d,h,w", *curves), 1e-3).astype(np.float32)
    ends = [size - edge for edge, size in zip(patch, image.shape[1:], strict=True)]
    steps = [max(int(edge * model["step"]), 1) for edge in patch]
    starts = [(*range(0, end, step), end) for end, step in zip(ends, steps, strict=True)]
    sums = np.zeros((len(model["regions"] or model["labels"]), *image.shape[1:]), np.float32)
    weights = np.zeros(image.shape[1:], np.float32)
    for corner in itertools.product(*starts):
        box = (slice(None), *(slice(first, first + edge) for first, edge in zip(corner, patch, strict=True)))
        for chosen in itertools.product(*(((), (axis + 1,)) for axis in model["mirror_axes"])):
            axes = sum(chosen, ())
            (logits,) = session.run(None, {"image": np.flip(image[box], axes)[None]})
            logits = np.flip(logits[0], axes)
            odds = np.exp(logits - logits.max(0))
            found = 1 / (1 + np.exp(-logits)) if model["regions"] else odds / odds.sum(0)
            sums[box] += weight * found
            weights[box[1:]] += weight
    place = [slice(first, size - last) for first, last, size in zip(before, after, weights.shape, strict=True)]
    return (sums / weights)[:, place[0], place[1], place[2]]


def main(scans, output):
    """Read, prepare, predict, restore, write."""
    model = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    scan = read_scan(scans, model)
    sitk.WriteImage(restore(predict(session, prepare(scan, model), model), scan, model), output, useCompression=True)


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1]) if len(sys.argv) > 2 else sys.exit(__doc__)
