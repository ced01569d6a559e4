"""What a class or function takes: its parameters by name, and what their annotations say of values in a config."""

from __future__ import annotations

import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate

from e2enet.common.config_rules import Rule, anything, choice, flag, is_number, is_whole, list_of

SIMPLE: dict[Any, Rule] = {
    bool: flag,
    int: Rule(is_whole, "a whole number"),
    float: Rule(is_number, "a number"),
    str: Rule(lambda v: isinstance(v, str), "text"),
    type(None): Rule(lambda v: v is None, "null"),
}


@dataclass(frozen=True)
class Signature:
    """The keyword parameters of a callable.

    Attributes:
        rules: What each parameter accepts, as far as its annotation tells.
        needed: Those without a default.
        takes_any: Whether any other name is taken too (`**options`).
    """

    rules: Mapping[str, Rule]
    needed: Sequence[str]
    takes_any: bool


def resolve_target(name: str) -> Callable[..., Any]:
    """What `_target_` names: a class or function, `package.module.Name`.

    Raises:
        Exception: whatever importing it raises.
    """
    found = pkgutil.resolve_name(name)
    if not callable(found):
        raise TypeError(f"{name} is no class or function")
    return found


def signature_of(target: Callable[..., Any]) -> Signature:
    """What a class or function takes; `**options: Unpack[SomeTypedDict]` counts as the TypedDict's keys."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a builtin, which tells nothing
        return Signature({}, [], True)
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation that names what is imported for type checkers alone
        hints = {}
    rules: dict[str, Rule] = {}
    needed, takes_any = [], False
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = [option for option in typing.get_args(hints.get(name)) if typing.is_typeddict(option)]
            for option in options:
                rules |= {key: annotation_rule(hint) for key, hint in typing.get_type_hints(option).items()}
            takes_any = not options
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            # `x: int = None` is how older code writes an optional one.
            none = [type(None)] if parameter.default is None else []
            rules[name] = annotation_rule(hints.get(name, Any), *none)
            if parameter.default is parameter.empty:
                needed.append(name)
    return Signature(rules, needed, takes_any)


def build_part(section: Mapping[str, Any], **known: Any) -> Any:
    """Build what a section's `_target_` names from its other keys, in plain containers.

    Args:
        section: checked.
        known: what the program can give; the target gets what its signature asks for and the section leaves open.
    """
    parameters = inspect.signature(resolve_target(str(section["_target_"]))).parameters
    supplied = {key: value for key, value in known.items() if key in parameters and section.get(key) is None}
    # Made first and called then: what is known may be objects that no config can hold.
    return instantiate({"_convert_": "all", **section, "_partial_": True})(**supplied)


def build_nested(value: Any) -> Any:
    """A value of a part with the sections in it that have a `_target_` built."""
    if isinstance(value, Mapping):
        return instantiate(value, _convert_="all") if "_target_" in value else value
    return [build_nested(item) for item in value] if isinstance(value, list) else value


def annotation_rule(hint: Any, *also: Any) -> Rule:
    """What an annotation says of a value in a config, of bool, int, float, str, None, Literal, lists and their unions.

    Anything is accepted where it names something else, which a config gives as a section with a `_target_`, or as
    whatever the target makes of it.
    """
    members = [*_members(hint), *also]
    rules = [_simple_rule(member) for member in members]
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules) or not known:
        return anything
    if len(known) == 1:
        return known[0]
    # In an order of our own: of two equal unions Python may give the members of the first that it has met.
    words = sorted({rule.expected for rule in known}, key=lambda text: (text == "null", text))
    if SIMPLE[float] in known and SIMPLE[int] in known:
        words.remove(SIMPLE[int].expected)
    return Rule(lambda v: any(rule.accepts(v) for rule in known), " or ".join(words))


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [hint]


def _simple_rule(hint: Any) -> Rule | None:
    if hint in SIMPLE:
        return SIMPLE[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return choice(*arguments)
    if inspect.isclass(origin) and issubclass(origin, Sequence) and not issubclass(origin, tuple):
        return list_of(annotation_rule(arguments[0]))
    return None
