"""What is wrong with a composed config: unknown keys, wrong values, contradictions, all of them at once."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.config_rules import Rule, choice
from e2enet.common.configs import as_plain
from e2enet.common.errors import first_line

# Hydra's own keys of a section with a `_target_`: here it is always built whole.
BUILDING_RULES = {
    "_partial_": choice(False),
    "_recursive_": choice(True, False),
    "_convert_": choice("none", "partial", "object", "all"),
}


@dataclass(frozen=True)
class Conflict:
    """`find` gets the values of `paths`, in this order, and returns a message or None."""

    paths: tuple[str, ...]
    find: Callable[..., str | None]


@dataclass(frozen=True)
class Schema:
    """Which keys a config has and what they accept.

    Attributes:
        rules: Path of every plain key -> what it accepts.
        supplied: Sections built through `_target_` -> parameters of the target that the code supplies itself; the
            section's keys are the target's other parameters.
        target_rules: What keys of such sections accept, where they are given.
        extras: Keys of such sections that are no parameters of the target.
        by_name: Sections among these whose key `name` chooses the target out of a table, instead of `_target_`.
        conflicts: Values that are fine alone and impossible together.
    """

    rules: Mapping[str, Rule]
    supplied: Mapping[str, AbstractSet[str]]
    target_rules: Mapping[str, Rule]
    extras: Mapping[str, Mapping[str, Rule]]
    conflicts: tuple[Conflict, ...] = ()
    by_name: Mapping[str, Mapping[str, Callable[..., Any]]] = field(default_factory=dict)

    def test_of(self, path: str) -> Callable[[Any], bool] | None:
        """What tells the values that a key accepts; None where nothing is said of them."""
        section, _, key = path.rpartition(".")
        rule = self.rules.get(path) or self.target_rules.get(path) or self.extras.get(section, {}).get(key)
        return None if rule is None else rule.accepts


def config_problems(config: DictConfig, schema: Schema, *, allow_missing: bool = False) -> list[str]:
    """What is wrong with a composed config, a line per problem; with `allow_missing`, values may still be missing."""
    raw = as_plain(config, resolve=False)
    raw.pop("hydra", None)
    config = OmegaConf.create(raw)  # a copy that may be written to
    missing = sorted(path for path in _paths(raw) if _get(raw, path) == "???")
    problems = {path: f"{path}: needs a value, e.g. {path}=VALUE" for path in missing}
    for path in missing:
        # Interpolations of a missing value would fail and hide the other problems.
        OmegaConf.update(config, path, "missing")
    unresolved = unresolved_values(config)
    for path, problem in unresolved.items():
        problems[path] = problem
        OmegaConf.update(config, path, "missing", merge=False)
    content = as_plain(config)
    problems |= {path: text for path, text in _section_problems(content, "", schema) if path not in problems}
    problems |= _missing_problems(content, schema, problems)
    for conflict in schema.conflicts:
        # A value that is wrong by itself would only confuse the comparison.
        if not any(_overlap(path, wrong) for path in conflict.paths for wrong in problems):
            values = [_get(content, path) for path in conflict.paths]
            message = conflict.find(*values)
            if message:
                problems[" ".join(conflict.paths)] = message
    if allow_missing:
        problems = {path: text for path, text in problems.items() if path not in missing}
    return list(problems.values())


def unresolved_values(config: DictConfig) -> dict[str, str]:
    """The keys of a config whose `${..}` cannot be resolved, each with its problem; not those that only name them."""
    raw = as_plain(config, resolve=False)
    texts = {path: _get(raw, path) for path in sorted(_paths(raw))}
    asking = [path for path, value in texts.items() if not isinstance(value, Mapping) and "${" in str(value)]
    found = {path: reason for path in asking if (reason := _unresolved(config, path)) is not None}
    problems = {}
    for path, reason in found.items():
        others = config.copy()
        for other in found.keys() - {path}:
            OmegaConf.update(others, other, "missing", merge=False)
        if _unresolved(others, path) is not None:
            problems[path] = (
                f"{path}={texts[path]}: cannot be resolved ({reason}); expected the name of a key of this config, or "
                "an environment variable as ${oc.env:NAME}"
            )
    return problems


def _unresolved(config: DictConfig, path: str) -> str | None:
    """Why a value cannot be resolved; None where it can."""
    try:
        found = OmegaConf.select(config, path)
        if OmegaConf.is_config(found):
            OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        return first_line(error)
    return None


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


def wrong_value(path: str, value: Any, rule: Rule) -> str:
    """The problem of a value that its rule does not accept."""
    return f"{path}={value}: expected {rule.expected}"


def unknown_key(path: str, key: str, prefix: str, known: Iterable[str]) -> str:
    """The problem of a key that does not exist, with the nearest that does; `prefix` is empty or ends with a dot."""
    names = sorted(set(known))
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(names)}"
    return f"{path}: unknown key; {hint}"


def _section_problems(section: Mapping[str, Any], prefix: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """(path, problem) of every key below `prefix`, which is empty or ends with a dot."""
    known_paths = [*schema.rules, *schema.supplied]
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in schema.rules:
            if not schema.rules[path].accepts(value):
                yield path, wrong_value(path, value, schema.rules[path])
        elif path in schema.supplied and isinstance(value, Mapping):
            yield from _target_problems(path, value, schema)
        elif isinstance(value, Mapping) and any(known.startswith(f"{path}.") for known in known_paths):
            yield from _section_problems(value, f"{path}.", schema)
        elif any(f"{known}.".startswith(f"{path}.") for known in known_paths):
            yield path, f"{path}={'null' if value is None else value}: expected a section, with keys of its own"
        elif not path.startswith("_"):
            known = [other.removeprefix(prefix).split(".")[0] for other in known_paths if other.startswith(prefix)]
            yield path, unknown_key(path, str(key), prefix, known)


def _missing_problems(content: Mapping[str, Any], schema: Schema, known: Mapping[str, str]) -> dict[str, str]:
    """The problems of keys and sections that are not there, of a section that lacks as a whole one; nothing of what
    lies in a section that is wrong itself, by the problems `known`."""
    there, found = _paths(content), {}
    for path in (*schema.rules, *schema.supplied):
        parts = path.split(".")
        levels = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        absent = [level for level in levels if level not in there]
        if absent and not any(level in known for level in levels):
            found[absent[0]] = f"{absent[0]}: is missing"
    return found


def _target_problems(path: str, section: Mapping[str, Any], schema: Schema) -> Iterator[tuple[str, str]]:
    """(path, problem) of a section that is built through `_target_`, or by its name out of a table."""
    makers = schema.by_name.get(path)
    if makers is None and section.get("_target_") is None:
        yield f"{path}._target_", f"{path}._target_: needs a value, the class or function that is built"
        return
    target = str(section.get("_target_" if makers is None else "name"))
    if makers is not None and target not in makers:
        yield f"{path}.name", wrong_value(f"{path}.name", target, choice(*makers))
        return
    try:
        maker = pkgutil.resolve_name(target) if makers is None else makers[target]
        named, needed, takes_any = target_parameters(maker)
    except Exception as error:  # whatever importing a user's module raises is the user's to see
        yield f"{path}._target_", f"{path}._target_: {target} cannot be imported: {first_line(error)}"
        return
    extras = schema.extras.get(path, {})
    allowed = [name for name in named if name not in schema.supplied[path]] + list(extras)
    for key, value in section.items():
        child = f"{path}.{key}"
        rule = extras.get(str(key)) or schema.target_rules.get(child)
        if key == "_target_" and makers is None:
            continue
        if key == "_target_":
            yield child, f"{child}: {path} is chosen by its name; expected {path}.name={' | '.join(makers or ())}"
        elif key in BUILDING_RULES:
            if not BUILDING_RULES[key].accepts(value):
                yield child, wrong_value(child, value, BUILDING_RULES[key])
        elif key not in allowed and not takes_any:
            yield child, unknown_key(child, str(key), f"{path}.", allowed)
        elif rule is not None and not rule.accepts(value):
            yield child, wrong_value(child, value, rule)
    for name in needed:
        if name in allowed and name not in section:
            yield f"{path}.{name}", f"{path}.{name}: needs a value ({target} has no default for it)"


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
