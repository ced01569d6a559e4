"""Check a composed config: report all unknown keys, wrong values and contradictions at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.config_rules import Rule, choice
from e2enet.common.configs import as_plain
from e2enet.common.errors import first_line
from e2enet.common.signatures import resolve_target, signature_of

# Hydra's own keys of a section with a `_target_`. `_partial_` must be false: the object is always built completely.
BUILDING_RULES = {
    "_partial_": choice(False),
    "_recursive_": choice(True, False),
    "_convert_": choice("none", "partial", "object", "all"),
}
COPIED = re.compile(r"\$\{([\w.]+)\}")  # a value copied from another key
# Packages for whose parameters the project has rules.
OWN = ("e2enet.", "torch.")


@dataclass(frozen=True)
class Conflict:
    """A contradiction between values: `find` gets the values of `paths`, in this order; it returns a message or None.

    It is called only if each of these values is valid by itself; with `always`, in any case. With `machine`, it depends
    on the machine, and says nothing about a run on another one.
    """

    paths: tuple[str, ...]
    find: Callable[..., str | None]
    always: bool = False
    machine: bool = False


@dataclass(frozen=True)
class Part:
    """A section whose keys are the parameters of the class or function that is built from it.

    Attributes:
        target: The class or function; None for that of the section's `_target_`.
        base: The base class that a class in `_target_` must have; its name, if importing it is slow.
        supplied: Parameters that the code supplies.
        offered: Parameters that the code supplies if the section does not.
        reserved: Parameters set by another key -> a message that names the key.
        extras: Keys that are no parameters -> their rules.
        rules: Parameter -> the project's rule, beyond its annotation. A user's own target is checked only by its
            signature.
        may_lack: Whether the section may be null or missing.
    """

    target: Callable[..., Any] | None = None
    base: type | str | None = None
    supplied: AbstractSet[str] = frozenset()
    offered: AbstractSet[str] = frozenset()
    reserved: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Rule] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    may_lack: bool = False


@dataclass(frozen=True)
class Schema:
    """The keys of a config and the values that they accept.

    Attributes:
        rules: Path of every plain key -> its rule.
        parts: Path of every section from which something is built -> its part; `callbacks.*` matches any name.
        conflicts: Contradictions between values that are each valid alone.
    """

    rules: Mapping[str, Rule]
    parts: Mapping[str, Part]
    conflicts: tuple[Conflict, ...] = ()

    def test_of(self, path: str) -> Callable[[Any], bool] | None:
        """Return the test for the values of a key; None if there is no rule."""
        section, _, key = path.rpartition(".")
        part = self.part_of(section)
        rule = self.rules.get(path) or (part and (part.rules.get(key) or part.extras.get(key)))
        return rule.accepts if rule else None

    def part_of(self, path: str) -> Part | None:
        """Return the part of the section at a path, or None."""
        parts = ((pattern, part) for pattern, part in self.parts.items() if pattern.count(".") == path.count("."))
        return next((part for pattern, part in parts if fnmatchcase(path, pattern)), None)


def config_problems(config: DictConfig, schema: Schema, *, allow_missing: bool = False) -> list[str]:
    """Return the problems of a composed config, a line each; with `allow_missing`, values may still be missing."""
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
    # A value copied from another key is reported at that key.
    copied = {path for path in problems if (found := COPIED.fullmatch(str(_get(raw, path)))) and found[1] in problems}
    problems = {path: problem for path, problem in problems.items() if path not in copied}
    for conflict in schema.conflicts:
        # A value that is wrong by itself would only confuse the comparison.
        if conflict.always or not any(_overlap(path, wrong) for path in conflict.paths for wrong in problems):
            values = [_get(content, path) for path in conflict.paths]
            message = conflict.find(*values)
            if message:
                problems[f"{' '.join(conflict.paths)} {conflict.find.__name__}"] = message
    if allow_missing:
        problems = {path: text for path, text in problems.items() if path not in missing}
    return list(problems.values())


def unresolved_values(config: DictConfig) -> dict[str, str]:
    """Return key -> problem of each `${..}` that cannot be resolved, without keys that only refer to such a key."""
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
    """Return why a value cannot be resolved; None if it can."""
    try:
        found = OmegaConf.select(config, path)
        if OmegaConf.is_config(found):
            OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        return first_line(error)
    return None


def wrong_value(path: str, value: Any, rule: Rule) -> str:
    """Return the message about a value that its rule does not accept."""
    return f"{path}={value}: expected {rule.expected}"


def unknown_key(path: str, key: str, prefix: str, known: Iterable[str]) -> str:
    """Return the message about an unknown key, with the closest known one; `prefix` is empty or ends with a dot."""
    names = sorted(set(known))
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(names)}"
    return f"{path}: unknown key; {hint}"


def _section_problems(section: Mapping[str, Any], prefix: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) of every wrong key below `prefix`, which is empty or ends with a dot."""
    known_paths = [*schema.rules, *schema.parts]
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in schema.rules:
            if not schema.rules[path].accepts(value):
                yield path, wrong_value(path, value, schema.rules[path])
        elif (part := schema.part_of(path)) is not None and isinstance(value, Mapping):
            yield from _part_problems(path, value, part, schema)
        elif part is not None and part.may_lack:
            if value is not None:
                yield path, f"{path}={value}: expected a section with _target_, or null"
        elif isinstance(value, Mapping) and any(known.startswith(f"{path}.") for known in known_paths):
            yield from _section_problems(value, f"{path}.", schema)
        elif any(f"{known}.".startswith(f"{path}.") for known in known_paths):
            yield path, f"{path}={'null' if value is None else value}: expected a section, with keys of its own"
        elif not path.startswith("_"):
            known = [other.removeprefix(prefix).split(".")[0] for other in known_paths if other.startswith(prefix)]
            yield path, unknown_key(path, str(key), prefix, known)


def _missing_problems(content: Mapping[str, Any], schema: Schema, known: Mapping[str, str]) -> dict[str, str]:
    """Return path -> problem of missing keys and sections.

    A section that is missing as a whole gives one problem. Keys in a section that is itself wrong, according to the
    problems `known`, give none.
    """
    there, found = _paths(content), {}
    needed = (path for path, part in schema.parts.items() if not part.may_lack)
    for path in (*schema.rules, *needed):
        parts = path.split(".")
        levels = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        absent = [level for level in levels if level not in there]
        if absent and not any(level in known for level in levels):
            found[absent[0]] = f"{absent[0]}: is missing"
    return found


def _part_problems(path: str, section: Mapping[str, Any], part: Part, schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) of a section from which something is built."""
    name = section.get("_target_")
    if part.target is not None and name is not None:
        yield f"{path}._target_", f"{path}._target_: there is one thing that is built here; leave it out"
        return
    if part.target is None and not isinstance(name, str):
        yield f"{path}._target_", f"{path}._target_: needs a value, the class or function that is built"
        return
    try:
        target = part.target or resolve_target(str(name))
        signature = signature_of(target)
    except Exception as error:  # show the user whatever importing a module raises
        yield f"{path}._target_", f"{path}._target_: {name} cannot be imported: {first_line(error)}"
        return
    base = resolve_target(part.base) if isinstance(part.base, str) else part.base
    if isinstance(base, type) and isinstance(target, type) and not issubclass(target, base):
        expected = f"{base.__module__}.{base.__name__}"
        yield f"{path}._target_", f"{path}._target_={name}: expected a class of {expected}"
        return
    is_own = part.target is not None or str(target.__module__).startswith(OWN)
    allowed = [key for key in signature.rules if key not in part.supplied and key not in part.reserved]
    for key, value in section.items():
        child = f"{path}.{key}"
        own = part.extras.get(str(key)) or (part.rules.get(str(key)) if is_own else None)
        rule = own or signature.rules.get(str(key))
        if key == "_target_":
            continue
        if key in BUILDING_RULES:
            if not BUILDING_RULES[key].accepts(value):
                yield child, wrong_value(child, value, BUILDING_RULES[key])
        elif key in part.reserved:
            yield child, f"{child}: {part.reserved[str(key)]}"
        elif key not in part.extras and key not in allowed and not (signature.takes_any and key not in part.supplied):
            yield child, unknown_key(child, str(key), f"{path}.", [*allowed, *part.extras])
        elif isinstance(value, Mapping) and (inner := schema.parts.get(child)) is not None:
            yield from _part_problems(child, value, inner, schema)
        elif isinstance(value, Mapping) and "_target_" in value:
            yield from _part_problems(child, value, Part(), schema)
        elif child in schema.parts and (value is not None or key in signature.needed):
            yield child, f"{child}={'null' if value is None else value}: expected a section with _target_"
        elif rule is not None and not rule.accepts(value):
            yield child, wrong_value(child, value, rule)
    for key in signature.needed:
        if key in allowed and key not in section and key not in part.offered:
            yield f"{path}.{key}", f"{path}.{key}: needs a value ({name or path} has no default for it)"


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
