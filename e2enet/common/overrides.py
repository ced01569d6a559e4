"""Overrides on a command line (`group=choice`, `key=value`, `~key`), read with Hydra's own parser."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from e2enet.common.configs import group_options


def parse_override(text: str) -> Override:
    """One argument as Hydra reads it; HydraException where it is no override."""
    return OverridesParser.create().parse_override(text)


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether a command line starts a sweep."""
    return "-m" in arguments or "--multirun" in arguments


def is_override(argument: str) -> bool:
    """Whether an argument looks like an override rather than a flag."""
    return "=" in argument or argument.startswith("~")


def override_values(override: Override) -> list[str]:
    """The values as Hydra would spell them, more than one for a sweep (`key=a,b`)."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def chooses_group(override: Override, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether an override picks a file of a config group; `groups` are those of `configs.group_options`."""
    return override.key_or_group in groups and not override.is_delete() and not isinstance(override.value(), dict)


def forced(override: Override, value: str) -> str:
    """`++key=value`, which Hydra takes for keys that are not in the config too: they are told apart later."""
    return f"++{override.key_or_group}={value}"


def quoted(text: str) -> str:
    """A value that Hydra reads as this text, whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def force_added(arguments: Sequence[str]) -> list[str]:
    """The command line with `key=value` as `++key=value`, for arguments that the config check let pass.

    Hydra would demand a `+` before a key that the composed config lacks, such as a parameter of another
    optimizer.
    """
    return [f"++{text}" if _sets_value(text) else text for text in arguments]


def unknown_choice(group: str, option: str, options: Sequence[str]) -> str:
    """The problem of a choice that a config group does not have."""
    close = difflib.get_close_matches(option, options, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{group}={option}: no such choice{hint}; expected {' | '.join(options)}"


def _sets_value(argument: str) -> bool:
    if argument.startswith(("-", "+", "~")) or not is_override(argument):
        return False
    override = parse_override(argument)
    return not chooses_group(override, group_options()) and not override.key_or_group.startswith("hydra")
