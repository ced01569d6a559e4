"""All mistakes of a config at once, before anything starts: unknown keys, wrong values, contradictions."""

from __future__ import annotations

import difflib
import inspect
import itertools
import pkgutil
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.errors import raise_problems
from e2enet.training.config_conflicts import CONFLICTS
from e2enet.training.config_rules import EXTRAS, RULES, SUPPLIED, TARGET_RULES
from e2enet.training.configs import as_plain, compose_config, group_options
from e2enet.training.resume import resumed_config

HEADING = "The configuration cannot be used:"
# A sweep of more jobs than this is checked value by value instead of job by job.
MOST_JOBS = 32


def check_command_line(arguments: Sequence[str]) -> None:
    """Check a command line of train.py, every job of a multirun included.

    Hydra stops at the first unknown key and a sweep at its first bad job; this reports all problems in one
    InputError.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-") and _is_override(argument)]
    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    raise_problems(list(dict.fromkeys(_command_line_problems(overrides, multirun))), HEADING)


def force_added(arguments: Sequence[str]) -> list[str]:
    """The command line with `key=value` as `++key=value`, for arguments that `check_command_line` let pass.

    Hydra would demand a `+` before a key that the composed config lacks, such as a parameter of another
    optimizer.
    """
    return [f"++{text}" if _sets_value(text) else text for text in arguments]


def check_config(config: DictConfig) -> None:
    """Check a composed config; one InputError with all problems."""
    raise_problems(config_problems(config), HEADING)


def config_problems(config: DictConfig) -> list[str]:
    """What is wrong with a composed config, a line per problem."""
    raw = as_plain(config, resolve=False)
    raw.pop("hydra", None)
    config = OmegaConf.create(raw)  # a copy that may be written to
    missing = sorted(path for path in _paths(raw) if _get(raw, path) == "???")
    problems = {path: f"{path}: needs a value, e.g. {path}=VALUE" for path in missing}
    for path in missing:
        # Interpolations of a missing value would fail and hide the other problems.
        OmegaConf.update(config, path, "missing")
    try:
        content = as_plain(config)
    except OmegaConfBaseException as error:
        return [*problems.values(), f"an interpolation cannot be resolved: {_first_line(error)}"]
    problems |= {path: text for path, text in _section_problems(content, "") if path not in problems}
    problems |= {path: f"{path}: is missing" for path in RULES if path not in _paths(content)}
    for conflict in CONFLICTS:
        # A value that is wrong by itself would only confuse the comparison.
        if not any(_overlap(path, wrong) for path in conflict.paths for wrong in problems):
            values = [_get(content, path) for path in conflict.paths]
            message = conflict.find(*values)
            if message:
                problems[" ".join(conflict.paths)] = message
    return list(problems.values())


def _section_problems(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """(path, problem) of every key below `prefix`, which is empty or ends with a dot."""
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in RULES:
            if not RULES[path].accepts(value):
                yield path, _wrong(path, value, RULES[path].expected)
        elif path in SUPPLIED and isinstance(value, Mapping):
            yield from _target_problems(path, value)
        elif isinstance(value, Mapping) and any(known.startswith(f"{path}.") for known in [*RULES, *SUPPLIED]):
            yield from _section_problems(value, f"{path}.")
        elif not path.startswith("_"):
            known = [
                other.removeprefix(prefix).split(".")[0] for other in [*RULES, *SUPPLIED] if other.startswith(prefix)
            ]
            yield path, _unknown(path, str(key), prefix, known)


def _target_problems(path: str, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, problem) of a section that is built through `_target_`."""
    target = section.get("_target_")
    try:
        named, needed, takes_any = target_parameters(pkgutil.resolve_name(str(target)))
    except Exception as error:  # whatever importing a user's module raises is the user's to see
        yield f"{path}._target_", f"{path}._target_: {target} cannot be imported: {_first_line(error)}"
        return
    allowed = [name for name in named if name not in SUPPLIED[path]] + list(EXTRAS.get(path, {}))
    for key, value in section.items():
        child = f"{path}.{key}"
        rule = EXTRAS.get(path, {}).get(str(key)) or TARGET_RULES.get(child)
        if key in ("_target_", "_convert_", "_partial_"):
            continue
        if key not in allowed and not takes_any:
            yield child, _unknown(child, str(key), f"{path}.", allowed)
        elif rule is not None and not rule.accepts(value):
            yield child, _wrong(child, value, rule.expected)
    for name in needed:
        if name in allowed and name not in section:
            yield f"{path}.{name}", f"{path}.{name}: needs a value ({target} has no default for it)"


def target_parameters(target: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """A callable's keyword parameters, those without default, and whether it takes any other name too.

    `**options: Unpack[SomeTypedDict]` counts as the TypedDict's keys.
    """
    named, needed, takes_any = [], [], False
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target).get(name)
            options = [option for option in typing.get_args(hint) if typing.is_typeddict(option)]
            named += [key for option in options for key in option.__annotations__]
            takes_any = not options
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            named.append(name)
            if parameter.default is parameter.empty:
                needed.append(name)
    return named, needed, takes_any


def _command_line_problems(overrides: Sequence[str], multirun: bool) -> Iterator[str]:
    parser = OverridesParser.create()
    groups = group_options()
    choices: list[list[str]] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            yield f"{text}: cannot be read as key=value ({_first_line(error)})"
            continue
        if _chooses_group(override, groups):
            options = groups[override.key_or_group]
            for option in set(_values(override)) - set(options):
                yield _unknown_option(override.key_or_group, option, options)
            known = [f"{_group_key(override)}={option}" for option in _values(override) if option in options]
            choices += [known] if known else []
        elif override.is_delete() or override.key_or_group.startswith("hydra"):
            choices.append([text])
        else:
            # `++` lets an unknown key into the config, where it is reported together with all others.
            choices.append([f"++{override.key_or_group}={value}" for value in _values(override)])
    if any(len(values) > 1 for values in choices) and not multirun:
        yield "several values for one key (a,b) start a sweep: add -m (or write a list as [a,b])"
    for job in _jobs(choices):
        yield from _job_problems(job, multirun)


def _job_problems(job: Sequence[str], multirun: bool) -> Iterator[str]:
    """Problems of one combination of values, its experiment's own sweep included."""
    try:
        config = compose_config(job, with_hydra=True)
    except (HydraException, OmegaConfBaseException) as error:
        yield _first_line(error)
        return
    swept = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given = {text.lstrip("+").split("=", 1)[0] for text in job}
    params = [f"{key}={value}" for key, value in swept.items() if key not in given]
    if multirun and params:
        # The sweep's parameters now stand among the overrides, so that this recursion ends.
        yield from _command_line_problems([*job, *params], multirun)
        return
    if config.get("resume") is not None and not multirun:
        # What runs is the stored config, not the defaults of this command line.
        config = resumed_config(config, job)
    yield from config_problems(config)
    if multirun and config.get("resume") is not None:
        yield "resume: continues one run; start it without -m"
    if multirun and OmegaConf.select(config, "trainer.strategy") == "ddp":
        yield "trainer.strategy=ddp: one process group per job; start jobs with torchrun or SLURM, without -m"


def _jobs(choices: Sequence[Sequence[str]]) -> Iterable[Sequence[str]]:
    """Every combination of one value per key; of a large sweep, every value once beside the others' first."""
    count = 1
    for values in choices:
        count *= len(values)
    if count <= MOST_JOBS:
        return itertools.product(*choices)
    first = [values[0] for values in choices]
    return [[*first[:index], value, *first[index + 1 :]] for index, values in enumerate(choices) for value in values]


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _chooses_group(override: Override, groups: Mapping[str, Sequence[str]]) -> bool:
    return override.key_or_group in groups and not override.is_delete() and not isinstance(override.value(), dict)


def _group_key(override: Override) -> str:
    """The group as Hydra wants it: `data`, or `+name` as the user wrote it."""
    return f"{'+' if override.is_add() else ''}{override.key_or_group}"


def _sets_value(argument: str) -> bool:
    if argument.startswith(("-", "+", "~")) or not _is_override(argument):
        return False
    override = OverridesParser.create().parse_override(argument)
    return not _chooses_group(override, group_options()) and not override.key_or_group.startswith("hydra")


def _is_override(argument: str) -> bool:
    return "=" in argument or argument.startswith("~")


def _wrong(path: str, value: Any, expected: str) -> str:
    return f"{path}={value}: expected {expected}"


def _unknown(path: str, key: str, prefix: str, known: Iterable[str]) -> str:
    names = sorted(set(known))
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(names)}"
    return f"{path}: unknown key; {hint}"


def _unknown_option(group: str, option: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(option, options, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{group}={option}: no such choice{hint}; expected {' | '.join(options)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _paths(section: Mapping[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in section.items():
        found.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found |= _paths(value, f"{prefix}{key}.")
    return found


def _get(content: Mapping[str, Any], path: str) -> Any:
    value: Any = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _overlap(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")
