"""A kernel mask as it was when something was made of it: to tell, without waiting for a GPU, whether it has changed."""

from __future__ import annotations

import torch
from torch import Tensor


class SeenMask:
    """Remembers a mask; `copy` holds its values.

    On a CPU values are compared. On a GPU that would wait for the device, so torch's count of changes is: a mask that
    is written through `.data`, which does not change the count, is not noticed there.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask, self._version, self.copy = mask, _version(mask), mask.clone()

    def is_current(self, mask: Tensor) -> bool:
        """Return whether a layer's mask is still the one remembered."""
        if mask.device.type == "cpu":
            return torch.equal(self.copy, mask)
        version = _version(mask)
        return self._mask is mask and version is not None and version == self._version


def _version(mask: Tensor) -> int | None:
    """Return torch's count of changes; it keeps none of tensors that were made in inference mode."""
    return None if mask.is_inference() else mask._version
