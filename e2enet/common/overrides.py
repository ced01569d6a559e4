"""Overrides on a command line (`group=choice`, `key=value`, `~key`), read with Hydra's own parser."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from e2enet.common.configs import CONFIGS, SEARCHPATH, ConfigSource, group_options
from e2enet.common.console import say
from e2enet.common.errors import InputError, first_line

QUOTES = "'\""  # of Hydra's grammar
# Flags of Hydra whose value is the next argument.
VALUED_FLAGS = (
    *("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun"),
)
NUMBER_IN_LIST = re.compile(r"(?<=[\[,])\s*([0-9][\w.+-]*)\s*(?=[,\]])")


# Sections and keys of earlier versions -> today's names.
RENAMED = {
    "training.optimizer": "optimizer",
    "training.schedule": "schedule",
    "training.loss": "loss",
    "trainer.progress": "trainer.enable_progress_bar",
    "trainer.log_every": "trainer.log_every_n_steps",
    "logger.project": "logger.wandb.project",
    "logger.group": "logger.wandb.group",
    "logger.tags": "logger.wandb.tags",
    "logger.offline": "logger.wandb.offline",
    "dsff.masks": "dsff.enabled",
    "data.foreground_share": "data.sampler.foreground_share",
    "data.augmentation": "augmentation",
}
# Values that are now files of a group; they replace another choice of this group on the command line.
MOVED = {"data.layout=cases": "data=brats_2021", "data.layout=msd": "data=brats"}


def with_names_of_today(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with overrides by today's names (`renamed`)."""
    read = [renamed(argument) for argument in arguments]
    chosen = {new.partition("=")[0] for given, new in zip(arguments, read, strict=True) if given in MOVED}
    return [
        new for given, new in zip(arguments, read, strict=True) if given in MOVED or new.partition("=")[0] not in chosen
    ]


def renamed(argument: str) -> str:
    """Return an override by today's names; print a message if it has a name of an earlier version."""
    if argument in MOVED:
        say(f"{argument} is {MOVED[argument]} now: it is read so")
        return MOVED[argument]
    key = argument.lstrip("+~").partition("=")[0]
    for old, new in RENAMED.items():
        if f"{key}.".startswith(f"{old}."):
            say(f"{old} is called {new} now: {argument} is read so")
            return argument.replace(old, new, 1)
    return argument


def parse_override(text: str) -> Override:
    """Parse an argument as Hydra does; HydraException if it is no override."""
    return OverridesParser.create().parse_override(text)


def unreadable(argument: str, error: HydraException) -> str:
    """Return the message about an argument that Hydra cannot read.

    It names the key or the special characters in the value, and shows how to quote the value.
    """
    key, separator, value = argument.partition("=")
    if not separator:
        return f"{argument}: expected key=value"
    if not _is_readable(f"{key}=1"):
        return f"{argument}: {key!r} is no key; expected letters, digits and _, with dots between"
    wrong = [character for character in dict.fromkeys(value) if not _is_readable(f"key=a{character}a")]
    if not wrong or value.startswith(("[", "{")):
        return f"{argument}: the value of {key} cannot be read ({first_line(error)}); {_how_to_quote(key, value)}"
    return f"{argument}: {' and '.join(wrong)} in the value of {key} must be quoted; {_how_to_quote(key, value)}"


def several_values(argument: str) -> str:
    """Return the message about a value with a comma where a single value is expected."""
    key, _, value = argument.partition("=")
    text = f"{argument}: one value expected for {key}; a list is written as [a,b]"
    return text if "(" in value else f"{text}, and where the comma belongs to the text: {_how_to_quote(key, value)}"


def as_text(argument: str, accepts: Callable[[str], Callable[[Any], bool] | None]) -> str:
    """Return the argument with quotes around text that Hydra would parse as a number, for keys that only accept text.

    Without quotes `data.name=2024_01` would be 202401 and `row=007` seven. Items of lists, also in `{a:[1,2]}`, and of
    sweeps (`a,b`) are quoted one by one.

    Args:
        argument: as typed.
        accepts: key -> test of its values, or None without a rule.
    """
    try:
        override = parse_override(argument) if is_override(argument) else None
    except HydraException:
        return argument  # reported later, with all problems
    test = None if override is None or override.is_delete() else accepts(override.key_or_group)
    if override is None or test is None:
        return argument
    start, _, value = argument.partition("=")
    inside, (left, right) = value.strip(), ("", "")
    content: Any = override.value()
    if isinstance(content, dict):
        return _with_quoted_items(argument, content, test)
    if isinstance(content, ChoiceSweep):
        items = list(content.list)
    elif isinstance(content, list):
        items, inside, (left, right) = content, inside[1:-1], ("[", "]")
    else:
        items = [content]
    written = [text.strip() for text in inside.split(",")] if len(items) > 1 else [inside.strip()]
    if len(written) != len(items) or "(" in inside or not any(map(_is_number, items)):
        return argument  # nested lists, quoted commas and choice(..) stay unchanged

    def taken(values: list[Any]) -> bool:
        return test(values) if left else all(map(test, values))

    texts = [text if _is_number(item) else item for text, item in zip(written, items, strict=True)]
    if taken(items) or not taken(texts):
        return argument
    spelled = [quoted(text) if _is_number(item) else text for text, item in zip(written, items, strict=True)]
    return f"{start}={left}{','.join(spelled)}{right}"


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether a command line starts a sweep."""
    return "-m" in arguments or "--multirun" in arguments


def is_override(argument: str) -> bool:
    """Whether an argument looks like an override rather than a flag."""
    return "=" in argument or argument.startswith("~")


def override_values(override: Override) -> list[str]:
    """Return the values in Hydra's spelling; several for a sweep (`key=a,b`)."""
    if override.is_interval_sweep():  # a sweeper draws values from the interval: return its ends
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def chooses_group(override: Override) -> bool:
    """Whether an override selects a file, or a list of files, of a config group."""
    if override.is_delete() or isinstance(override.value(), dict):
        return False
    return bool(group_options(override.key_or_group))


def chosen_options(override: Override) -> list[str]:
    """Return all files that an override of a group selects, in a list or sweep too."""
    texts = [text for value in override_values(override) for text in value.strip("[]").split(",")]
    return [name for text in texts if (name := text.strip(QUOTES + " "))]


def source_of(arguments: Sequence[str]) -> ConfigSource:
    """Return where the command line of a Hydra app searches its configs.

    Raises:
        InputError: it names a folder that does not exist.
    """
    flags, _ = get_args_parser().parse_known_args(list(arguments))
    for flag, folder in (("--config-dir", flags.config_dir), ("--config-path", flags.config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"{flag} {folder}: no such folder; expected one with YAML files and config groups")
    return ConfigSource(
        name=(flags.config_name or "config").removesuffix(".yaml"),
        primary=Path(flags.config_path).absolute() if flags.config_path else CONFIGS,
        added=Path(flags.config_dir).absolute() if flags.config_dir else None,
        searchpath=next((text for text in reversed(overrides_of(arguments)) if text.startswith(SEARCHPATH)), ""),
    )


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a Hydra app that are neither flags nor values of flags."""
    found, is_value = [], False
    for argument in arguments:
        if not is_value and not argument.startswith("-"):
            found.append(argument)
        is_value = argument in VALUED_FLAGS
    return found


def forced(override: Override, value: str) -> str:
    """Return `++key=value`, which Hydra also accepts for unknown keys; these are reported later."""
    return f"++{override.key_or_group}={value}"


def quoted(text: str) -> str:
    """Quote any text so that Hydra reads it unchanged.

    In Hydra's quoted text, a backslash is an escape only before a quote, the closing one included.
    """
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def force_added(arguments: Sequence[str]) -> list[str]:
    """Return the command line with `key=value` as `++key=value`, for arguments that passed the config check.

    Hydra would otherwise demand a `+` before a key that the composed config lacks, such as a parameter of another
    optimizer.
    """
    return [f"++{text}" if _sets_value(text) else text for text in arguments]


def unknown_choice(group: str, option: str, options: Sequence[str]) -> str:
    """Return the message about a choice that a config group does not have."""
    close = difflib.get_close_matches(option, options, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{group}={option}: no such choice{hint}; expected {' | '.join(options)}"


def _sets_value(argument: str) -> bool:
    if argument.startswith(("-", "+", "~")) or not is_override(argument):
        return False
    override = parse_override(argument)
    return not override.key_or_group.startswith("hydra") and not chooses_group(override)


def _is_readable(argument: str) -> bool:
    try:
        parse_override(argument)
    except HydraException:
        return False
    return True


def _how_to_quote(key: str, value: str) -> str:
    """Show the value in the shell's quotes, and in them Hydra's: around each text of a list, or the whole value."""
    inner = f"{key}={quoted(value.strip(QUOTES))}"
    if value.startswith("[") and value.endswith("]"):
        texts = [text.strip() for text in value[1:-1].split(",")]
        spelled = [text if _is_readable(f"{key}={text}") else quoted(text.strip(QUOTES)) for text in texts]
        items = f"{key}=[{','.join(spelled)}]"
        inner = items if _is_readable(items) else inner
    return "write " + (shlex.quote(inner) if re.search(r'["$`\\\\!]', inner) else f'"{inner}"')


def _with_quoted_items(argument: str, content: Any, test: Callable[[Any], bool]) -> str:
    """Quote the numbers in the lists of a mapping, if the key accepts the mapping only with quotes."""
    start, _, value = argument.partition("=")
    spelled = f"{start}={NUMBER_IN_LIST.sub(lambda found: quoted(found[1]), value)}"
    return spelled if not test(content) and test(parse_override(spelled).value()) else argument


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
