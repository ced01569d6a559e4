"""The memory of a prediction does not grow with the probabilities of the whole volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# 32 classes of 96 x 128 x 128 voxels are 201 MB. Windows are 8 planes deep; these planes are 17 MB.
PROGRAM = """
import numpy as np
import torch
from torch import nn

from benchmarks.measuring import peak_bytes
from e2enet.data.preparation.preprocess import Preprocessed
from e2enet.data.preparation.restore import restore_labels
from e2enet.inference.sliding_window import predict_planes

def predict(depth):
    image = np.ones((1, depth, 128, 128), np.float32)
    box = (slice(0, depth), slice(0, 96), slice(0, 128))
    prepared = Preprocessed(image, box, (depth, 96, 128), (1.0, 1.4, 1.0), (1.0, 1.0, 1.0))
    return restore_labels(predict_planes([network], image, (8, 64, 64), step=1.0), prepared)

network = nn.Conv3d(1, 32, 1)
torch.set_num_threads(1)
predict(16)  # every library is loaded now
before = peak_bytes()
labels = predict(96)
assert labels.shape == (96, 96, 128)
print(peak_bytes() - before)
"""


def test_memory_stays_below_the_probabilities_of_the_whole_volume() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The limit covers image, labels and memory that malloc keeps. A volume of one class is 6 MB.
    assert int(done.stdout) < 60e6
