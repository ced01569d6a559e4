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


# Sections and keys that earlier versions called otherwise.
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
# Values that are files of a group now, whatever file of it is chosen beside them.
MOVED = {"data.layout=cases": "data=brats_2021", "data.layout=msd": "data=brats"}


def with_names_of_today(arguments: Sequence[str]) -> list[str]:
    """Overrides by the names of today (`renamed`), other arguments as they are."""
    read = [renamed(argument) for argument in arguments]
    chosen = {new.partition("=")[0] for given, new in zip(arguments, read, strict=True) if given in MOVED}
    return [
        new for given, new in zip(arguments, read, strict=True) if given in MOVED or new.partition("=")[0] not in chosen
    ]


def renamed(argument: str) -> str:
    """An override by the names of today, which is told where it has one of an earlier version; others as they are."""
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
    """One argument as Hydra reads it; HydraException where it is no override."""
    return OverridesParser.create().parse_override(text)


def unreadable(argument: str, error: HydraException) -> str:
    """The problem of an argument that Hydra cannot read: its key, the characters that it stumbles over, and how the
    value is quoted so that they mean nothing."""
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
    """The problem of a value with a comma where one value is wanted."""
    key, _, value = argument.partition("=")
    text = f"{argument}: one value expected for {key}; a list is written as [a,b]"
    return text if "(" in value else f"{text}, and where the comma belongs to the text: {_how_to_quote(key, value)}"


def as_text(argument: str, accepts: Callable[[str], Callable[[Any], bool] | None]) -> str:
    """The argument with quotes around what Hydra would take for a number and the key takes as text alone.

    `data.name=2024_01` would be 202401, `row=007` seven. Items of lists, also in `{a:[1,2]}`, and of sweeps (`a,b`) are
    looked at one by one.

    Args:
        argument: as typed.
        accepts: gives for a key the test of its values, None where there is none.
    """
    try:
        override = parse_override(argument) if is_override(argument) else None
    except HydraException:
        return argument  # told where all problems are
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
        return argument  # nested, quoted commas, choice(..): left as it is

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
    """The values as Hydra would spell them, more than one for a sweep (`key=a,b`)."""
    if override.is_interval_sweep():  # a sweeper draws from it
        interval: Any = override.value()
        return [str(interval.start), str(interval.end)]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def chooses_group(override: Override) -> bool:
    """Whether an override picks a file, or a list of files, of a config group."""
    if override.is_delete() or isinstance(override.value(), dict):
        return False
    return bool(group_options(override.key_or_group))


def chosen_options(override: Override) -> list[str]:
    """The files that an override of a group picks, of a list and of a sweep all."""
    texts = [text for value in override_values(override) for text in value.strip("[]").split(",")]
    return [name for text in texts if (name := text.strip(QUOTES + " "))]


def source_of(arguments: Sequence[str]) -> ConfigSource:
    """Where a command line of a Hydra app wants its configs to be looked for.

    Raises:
        InputError: it names a folder that there is not.
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
    """The arguments of a Hydra app that are neither flags nor the values of flags."""
    found, is_value = [], False
    for argument in arguments:
        if not is_value and not argument.startswith("-"):
            found.append(argument)
        is_value = argument in VALUED_FLAGS
    return found


def forced(override: Override, value: str) -> str:
    """`++key=value`, which Hydra takes for keys that are not in the config too: they are told apart later."""
    return f"++{override.key_or_group}={value}"


def quoted(text: str) -> str:
    """A value that Hydra reads as this text, whatever is in it.

    Hydra takes a backslash for itself, but where it stands before a quote, or before the one that ends the value.
    """
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
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
    return not override.key_or_group.startswith("hydra") and not chooses_group(override)


def _is_readable(argument: str) -> bool:
    try:
        parse_override(argument)
    except HydraException:
        return False
    return True


def _how_to_quote(key: str, value: str) -> str:
    """Two pairs of quotes, the shell's outside and Hydra's inside: around each text of a list, or the whole value."""
    inner = f"{key}={quoted(value.strip(QUOTES))}"
    if value.startswith("[") and value.endswith("]"):
        texts = [text.strip() for text in value[1:-1].split(",")]
        spelled = [text if _is_readable(f"{key}={text}") else quoted(text.strip(QUOTES)) for text in texts]
        items = f"{key}=[{','.join(spelled)}]"
        inner = items if _is_readable(items) else inner
    return "write " + (shlex.quote(inner) if re.search(r'["$`\\\\!]', inner) else f'"{inner}"')


def _with_quoted_items(argument: str, content: Any, test: Callable[[Any], bool]) -> str:
    """The argument with quotes around numbers in the lists of a mapping, where it is taken with them alone."""
    start, _, value = argument.partition("=")
    spelled = f"{start}={NUMBER_IN_LIST.sub(lambda found: quoted(found[1]), value)}"
    return spelled if not test(content) and test(parse_override(spelled).value()) else argument


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
