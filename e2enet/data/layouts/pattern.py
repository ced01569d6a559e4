r"""Patterns of file names: `{case}/{case}_{modality}.nii.gz`, with fields in braces.

A field matches any text between slashes, or its own regular expression: `img{number:\d{4}}`. A repeated field matches
the same text each time. The ending may be any supported one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from e2enet.common.errors import InputError
from e2enet.data.formats.listing import FILE_ENDINGS, find_ending, spell_endings

ANYTHING = "[^/]+"
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Field:
    """A field of a pattern, and the regular expression that its text matches."""

    name: str
    expression: str = ANYTHING


Segment = tuple[str | Field, ...]  # the part between two slashes


@dataclass(frozen=True)
class Pattern:
    """A pattern of paths relative to a folder. The last segment is without the ending."""

    text: str
    segments: tuple[Segment, ...]
    ending: str

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields."""
        return frozenset(piece.name for segment in self.segments for piece in segment if isinstance(piece, Field))

    @property
    def folders(self) -> tuple[Segment, ...]:
        """The segments of folders."""
        return self.segments[:-1]

    @property
    def has_own_folders(self) -> bool:
        """Whether a folder's name holds a field, so that each case (or group of cases) has its own folder."""
        return any(isinstance(piece, Field) for segment in self.folders for piece in segment)

    @cached_property
    def num_literal(self) -> int:
        """Number of literal characters. If two patterns match a name, the one with more is used."""
        return sum(len(piece) for segment in self.segments for piece in segment if isinstance(piece, str))

    def match(self, index: int, name: str, known: Mapping[str, str]) -> dict[str, str] | None:
        """Match a name with segment `index` and return its fields and the `known` ones; None if it does not match.

        `known` holds the fields of the folders above. The name of a file is without its ending.
        """
        seen: set[str] = set()
        expression = "".join(_expression(piece, known, seen) for piece in self.segments[index])
        found = re.fullmatch(expression, name)
        return None if found is None else {**known, **found.groupdict()}

    def fill(self, values: Mapping[str, str], ending: str | None = None) -> str:
        """Return the path with these field values, and with `ending` instead of the pattern's own if it is given."""
        path = "/".join("".join(_text(piece, values) for piece in segment) for segment in self.segments)
        return path + (self.ending if ending is None else ending)


def parse_pattern(text: str, modalities: tuple[str, ...] = ()) -> Pattern:
    """Parse a pattern. The field `modality` matches one of `modalities`.

    Raises:
        InputError: the pattern is invalid.
    """
    segments: list[list[str | Field]] = [[]]
    for piece in _pieces(text):
        if isinstance(piece, Field):
            segments[-1].append(_checked(piece, text, modalities))
            continue
        first, *others = piece.split("/")
        segments[-1].append(first)
        segments += [[other] for other in others]
    ending = find_ending(segments[-1][-1]) if isinstance(segments[-1][-1], str) else None
    if ending is None:
        raise InputError(f"{text!r}: an ending out of {spell_endings(FILE_ENDINGS)} expected")
    segments[-1][-1] = str(segments[-1][-1]).removesuffix(ending)
    kept = tuple(tuple(piece for piece in segment if piece != "") for segment in segments)
    if any(segment in ((), (".",), ("..",)) for segment in kept):
        raise InputError(f"{text!r}: a path below the dataset's folder expected, such as '{{case}}/{{case}}.nii.gz'")
    return Pattern(text, kept, ending)


def _pieces(text: str) -> Iterator[str | Field]:
    """Split the text at its fields. Braces in a field's expression must be paired: `{number:\\d{4}}`."""
    position = 0
    while position < len(text):
        opening = text.find("{", position)
        if opening < 0:
            opening = len(text)
        if "}" in text[position:opening]:
            raise InputError(f"{text!r}: a brace closes that none opens; fields such as {{case}} expected")
        yield text[position:opening]
        if opening == len(text):
            return
        depth, end = 1, opening + 1
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise InputError(f"{text!r}: a brace opens that none closes; fields such as {{case}} expected")
        name, separator, expression = text[opening + 1 : end - 1].partition(":")
        yield Field(name, expression if separator else ANYTHING)
        position = end
    yield ""


def _checked(field: Field, text: str, modalities: tuple[str, ...]) -> Field:
    if not NAME.fullmatch(field.name):
        raise InputError(f"{text!r}: {{{field.name}}} is no field; a name of letters, digits and _ expected")
    if field.name == "modality":
        if not modalities:
            raise InputError(f"{text!r}: has {{modality}}, which `channels` gives its values only in the images")
        if field.expression != ANYTHING:
            raise InputError(f"{text!r}: {{modality}} stands for the values of `channels`; no expression expected")
        return Field(field.name, "|".join(map(re.escape, modalities)))
    try:
        named = re.compile(field.expression).groupindex
    except re.error as error:
        raise InputError(f"{text!r}: {field.expression!r} is no regular expression ({error})") from error
    if named:
        raise InputError(f"{text!r}: {field.expression!r} has groups with names of their own; others expected")
    return field


def _expression(piece: str | Field, known: Mapping[str, str], seen: set[str]) -> str:
    if isinstance(piece, str):
        return re.escape(piece)
    if piece.name in known:
        return re.escape(known[piece.name])
    if piece.name in seen:
        return f"(?P={piece.name})"
    seen.add(piece.name)
    return f"(?P<{piece.name}>{piece.expression})"


def _text(piece: str | Field, values: Mapping[str, str]) -> str:
    return piece if isinstance(piece, str) else values[piece.name]
