"""Validates a table of values against a structure's fields, and reports every problem at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

import msgspec

from pcapsvc.core.errors import Problem, shown, shown_words

# Up to so many unknown keys are reported one by one: finding a similar name takes time.
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
    Validate each value against the type of its field.

    A field's type carries its bounds and, as C{Meta(description=...)}, the rule in words:
    C{a whole number, 1 or more}. Values are not converted: a boolean, a float or a string is
    not an integer.

    @param given: the values, by the names that the fields have in the table.
    @param prefix: what comes before a field's name in a problem's path.
    @param secrets: the fields whose values are never shown.
    @param ignore_unknown: whether unknown keys are ignored.

    @return: the valid values, by field, and the problems with the others.
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
        rule = f"has {unknown - _MOST_UNKNOWN} more unknown keys"
        problems.append(Problem(path=prefix.rstrip(".") or "request", rule=rule))
    return values, problems


def unknown_key(key: str, known: Collection[str], *, prefix: str = "") -> Problem:
    """The problem that a key is unknown, with the most similar known one."""
    # Imported here, because a valid configuration doesn't need it, and it costs 200 kB.
    import difflib

    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return Problem(path=prefix + (shown_words(key) or "''"), rule=f"is not a known key{hint}")


def rule_of(kind: Any) -> str:
    """The rule that a field's type carries."""
    for part in (kind, *get_args(kind)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    raise TypeError(f"{kind!r} carries no rule")
