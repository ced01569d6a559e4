"""Keys that hold one mapping as a whole: an override replaces it, where Hydra would merge the two."""

from __future__ import annotations

from collections.abc import Sequence

# Merged, `data.labels={0:background,1:kidney}` would keep the tumour and the cyst of the config.
WHOLE = ("data.labels", "data.label_map", "data.regions", "data.layout.channels", "data.layout.folders")


def replacing(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of one config, with those of `WHOLE` keys preceded by `++key=null`.

    Hydra applies overrides in their order. It merges a mapping into a mapping, but not into null.
    """
    found = []
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key in WHOLE and value.lstrip().startswith("{"):
            found.append(f"++{key}=null")
        found.append(text)
    return found
