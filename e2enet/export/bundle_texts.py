"""The texts of a MONAI bundle: docs/README.md and LICENSE."""

from __future__ import annotations

from e2enet.export.description import model_words
from e2enet.inference.checkpoint import LoadedModel

README = """\
# {name}: {classes}

E2ENet ([arXiv 2312.04727](https://arxiv.org/abs/2312.04727)), trained on {name} and exported by the package e2enet. It
segments {classes} in 3D scans with {channels}.

## Run

```bash
pip install "e2enet[train]" "monai[fire,ignite]"
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS --output_dir LABELS
```

SCANS is a folder of scans that are named as those of the training data, or one scan. LABELS gets a label image for each
of them, on the scan's own grid. Its voxels are those that `e2enet predict` writes.

## Input and output

| channel of the image | |
|---|---|
{channel_rows}

| value of a label image | |
|---|---|
{label_rows}

{how}

The network sees patches of {patch} voxels at a spacing of {spacing} mm. Both name {axis} first,
along which the slices lie, then the other two in {order}.

## Parts

`configs/inference.json` names four parts of `{parts}`: `find_scans` (the scans of a folder), `PreprocessScand` (crop,
normalise, resample), `WindowProbabilities` (the network, averaged over mirrored copies) and `RestoreLabelsd` (back to
the scan's grid). Everything else is MONAI's own: `SlidingWindowInferer` with Gaussian weights drives the network. All
probabilities of a scan are in memory at once, which takes more of it than `e2enet predict` does.

A config is code: run bundles from people whom you trust.

## To be filled in

The authors, the copyright (`configs/metadata.json`), the licence of the weights (`LICENSE`), scores and limits. The
model is for research, not for diagnosis.
"""
# LICENSE, the same for every model. A run does not know the licence of its weights.
LICENCE = """\
Configuration files (configs/, docs/): Apache License, Version 2.0 (SPDX: Apache-2.0),
https://www.apache.org/licenses/LICENSE-2.0

Weights (models/): no licence is granted here. Who trained the model decides, within the terms of the data that it was
trained on, and replaces this paragraph before sharing the bundle.
"""


def readme_text(model: LoadedModel, name: str) -> str:
    """Return docs/README.md of a model that was trained on the dataset `name`."""
    scheme, plan = model.scheme, model.plan
    how = "The network returns a probability for each of these values."
    if scheme.regions:
        regions = "; ".join(
            f"{region} = {'+'.join(map(str, united))}, written as {label}"
            for (region, united), label in zip(scheme.regions.items(), scheme.order, strict=True)
        )
        how = f"The network returns a probability for each of these regions, later ones over earlier ones: {regions}."
    return README.format(
        **model_words(model),
        name=name,
        channel_rows="\n".join(f"| {index} | {channel} |" for index, channel in enumerate(model.channels)),
        how=how,
        spacing=" x ".join(f"{edge:g}" for edge in plan.spacing),
        parts="e2enet.export.bundle_parts",
    )
