"""Segment a scan by the model.onnx and model.json beside this file: python predict.py SCAN [SCAN ..] LABELS

A scan is one file with all channels, or a file per channel. Needs numpy, SimpleITK and onnxruntime.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import SimpleITK as sitk  # noqa: N813
from scan_grid import gaussian_weights, mirrorings, pad_to_patch, prepare, read_scan, restore, windows

FOLDER = pathlib.Path(__file__).parent
ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")


def predict(session, image, model):
    """Average probabilities (K, D, H, W) over windows, weighted towards their centres, and over mirrored copies."""
    patch = model["plan"]["patch_size"]
    image, inside = pad_to_patch(image, patch)
    weight = gaussian_weights(patch)
    sums = np.zeros((len(model["regions"] or model["labels"]), *image.shape[1:]), np.float32)
    weights = np.zeros(image.shape[1:], np.float32)
    for box in windows(image.shape[1:], patch, model["step"]):
        for axes in mirrorings(model["mirror_axes"]):
            (logits,) = session.run(None, {"image": np.flip(image[box], axes)[None]})
            logits = np.flip(logits[0], axes)
            odds = np.exp(logits - logits.max(0))
            probabilities = 1 / (1 + np.exp(-logits)) if model["regions"] else odds / odds.sum(0)
            sums[box] += weight * probabilities
            weights[box[1:]] += weight
    return (sums / weights)[inside]


def main(scans, output):
    """Read, prepare, predict, restore, write."""
    if output.exists() or not output.absolute().parent.is_dir() or not output.name.endswith(ENDINGS):
        sys.exit(f"{output}: a new file in a folder that exists expected, its name ending in {' or '.join(ENDINGS)}")
    model = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    scan = read_scan(scans, model)
    labels = restore(predict(session, prepare(scan, model), model), scan, model)
    sitk.WriteImage(labels, output, useCompression=True)


if __name__ == "__main__":
    main(sys.argv[1:-1], pathlib.Path(sys.argv[-1])) if len(sys.argv) > 2 else sys.exit(__doc__)
