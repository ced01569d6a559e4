"""Parameters of a class or function, and the config values that their annotations allow."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
        rules: Parameter -> accepted values, as far as its annotation tells.
        needed: Parameters without a default.
        takes_any: Whether any other name is accepted too (`**options`).
    """

    rules: Mapping[str, Rule]
    needed: Sequence[str]
    takes_any: bool


def resolve_target(name: str) -> Callable[..., Any]:
    """Import the class or function that `_target_` names, `package.module.Name`.

    Raises:
        TypeError: the name is neither a class nor a function.
        Exception: whatever importing it raises.
    """
    try:
        found = pkgutil.resolve_name(name)
    except AttributeError:
        # It is raised for a module that cannot be imported, too. Importing that one tells why.
        with suppress(ModuleNotFoundError):
            importlib.import_module(name.rpartition(".")[0])
        raise
    if not callable(found):
        raise TypeError(f"{name} is no class or function")
    return found


def signature_of(target: Callable[..., Any]) -> Signature:
    """Return the signature of a class or function; `**options: Unpack[SomeTypedDict]` gives the TypedDict's keys."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a builtin without a signature
        return Signature({}, [], True)
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation names something imported only for type checkers
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
            # Older code writes optional parameters as `x: int = None`.
            none = [type(None)] if parameter.default is None else []
            rules[name] = annotation_rule(hints.get(name, Any), *none)
            if parameter.default is parameter.empty:
                needed.append(name)
    return Signature(rules, needed, takes_any)


def build_part(section: Mapping[str, Any], **known: Any) -> Any:
    """Build the `_target_` of a section with its other keys as arguments, in plain containers.

    Args:
        section: checked.
        known: arguments that the program can supply. The target gets those that its signature has and the section does
            not set.
    """
    parameters = inspect.signature(resolve_target(str(section["_target_"]))).parameters
    supplied = {key: value for key, value in known.items() if key in parameters and section.get(key) is None}
    # Build a partial first, then call it: `known` may contain objects that no config can hold.
    return instantiate({"_convert_": "all", **section, "_partial_": True})(**supplied)


def build_nested(value: Any) -> Any:
    """Return the value with every section in it that has a `_target_` built."""
    if isinstance(value, Mapping):
        return instantiate(value, _convert_="all") if "_target_" in value else value
    return [build_nested(item) for item in value] if isinstance(value, list) else value


def annotation_rule(hint: Any, *also: Any) -> Rule:
    """Return the rule of an annotation of bool, int, float, str, None, Literal, lists and their unions.

    With any other annotation, every value is accepted: a config gives it as a section with a `_target_`, or as a value
    that the target converts.
    """
    members = [*_members(hint), *also]
    rules = [_simple_rule(member) for member in members]
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules) or not known:
        return anything
    if len(known) == 1:
        return known[0]
    # Sorted, since Python caches equal unions and may return their members in another order.
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
