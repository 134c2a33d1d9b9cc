"""Checks a table of values against a structure's fields, and tells every problem at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, get_args

import msgspec

from pcapsvc.core.errors import Problem, shown, shown_words

# Of the keys that are not known so many are told: it takes time to find the name that is nearest.
_MOST_UNKNOWN = 20


def check_fields(
    structure: type[msgspec.Struct],
    given: Mapping[str, Any],
    *,
    prefix: str = "",
    secrets: Collection[str] = (),
    ignore_unknown: bool = False,
) -> tuple[dict[str, Any], list[Problem]]:
    """
    Check each given value by the type of the field that bears its name.

    A field's type carries its bounds and, as C{Meta(description=...)}, the rule
    in words: C{a whole number, 1 or more}. Values are taken strictly: an integer
    is no boolean, no float and no string.

    @param prefix: what stands before a field's name in a problem's path.
    @param secrets: the fields whose values are never shown.
    @param ignore_unknown: whether a key that is no field is passed over.

    @return: the values that hold, by field, and the problems with the others.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(structure)}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    unknown = 0
    for key, value in given.items():
        field = fields.get(key)
        if field is None:
            unknown += 1
            if not ignore_unknown and unknown <= _MOST_UNKNOWN:
                problems.append(unknown_key(key, fields, prefix=prefix))
            continue
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            secret = key in secrets
            problems.append(
                Problem(
                    path=prefix + key,
                    value=None if secret else shown(value),
                    rule=f"must be {rule_of(field.type)}",
                )
            )
    if not ignore_unknown and unknown > _MOST_UNKNOWN:
        rule = f"has {unknown - _MOST_UNKNOWN} more keys that are not known"
        problems.append(Problem(path=prefix.rstrip(".") or "request", rule=rule))
    return values, problems


def unknown_key(key: str, known: Collection[str], *, prefix: str = "") -> Problem:
    """The problem that a key is not known, with the nearest name that is."""
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return Problem(path=prefix + (shown_words(key) or "''"), rule=f"is not a known key{hint}")


def rule_of(kind: Any) -> str:
    """The rule that a field's type carries, in words."""
    for part in (kind, *get_args(kind)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    raise TypeError(f"{kind!r} carries no rule in words")
