"""Settings of masks that are given for a run without masks: its results would be taken for those of sparse fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from e2enet.common.overrides import parse_override

# Their choice decides whether there are masks: U-Nets have no fusion layers.
DECIDING = ("dsff", "dsff.enabled", "network")


def idle_mask_settings(
    config: DictConfig, given: Sequence[str], row: Sequence[str], swept: Sequence[str]
) -> Iterator[str]:
    """Yield a problem for each setting of masks that is given for a job without masks.

    A job without masks is wanted where its row, or one value of a sweep, switches them off. What the command line sets
    is then meant for the other jobs.

    Args:
        config: Of the job, composed.
        given: Its overrides, without the row's own.
        row: The overrides of its row.
        swept: Keys that have several values in the sweep.
    """
    if config.get("resume") is not None or OmegaConf.select(config, "dsff.enabled") is not False:
        return
    chosen = dict.fromkeys((*map(_key, row), *swept))
    for text in row if any(key in chosen for key in DECIDING) else (*given, *row):
        key = _key(text)
        if key.startswith("dsff.") and key not in DECIDING:
            yield (
                f"{text.lstrip('+')}: has no effect, since fusion is dense here (dsff.enabled=false); "
                f"expected a choice with masks beside it, e.g. dsff=dsff, or no {key}"
            )


def _key(text: str) -> str:
    return parse_override(text).key_or_group
