"""Where bfloat16 saves time on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from e2enet.network import half_precision

AMD, INTEL = "AMD Ryzen 9 7940HS", "Intel Xeon Processor"


@pytest.mark.parametrize(
    ("amx", "known", "pays"),
    [
        (True, {}, True),
        (False, {"cpu_name": AMD, "avx512_bf16": True}, True),
        (False, {"cpu_name": AMD, "avx512_bf16": False}, False),
        (False, {"cpu_name": INTEL, "avx512_bf16": True}, False),
        (False, {}, False),  # another architecture
        (False, None, False),  # a torch that does not tell
    ],
)
def test_bfloat16_pays_with_matrix_units_and_where_it_is_twice_as_fast(
    amx: bool, known: dict[str, Any] | None, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    if known is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert half_precision._pays() is pays
