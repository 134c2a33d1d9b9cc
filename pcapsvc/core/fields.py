"""Validates a table of values against a structure's fields, and reports every problem at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args

import msgspec

from pcapsvc.core.errors import Problem, shown, shown_words

#: What a field's type has as C{Meta(extra=SECRET)} if its values are never shown.
SECRET = {"secret": True}

# Up to this many unknown keys are reported one by one.
_MOST_UNKNOWN = 20
# Finding a similar name takes a tenth of a millisecond: it is done for this many keys of a table, if they
# are not longer than this.
_MOST_HINTS = 3
_LONGEST_HINTED = 40

# What a key is called elsewhere, if that is not similar to it: answers have C{filter} for what C{bpf} says.
_CALLED_ELSEWHERE = {"filter": "bpf"}


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
    @param secrets: the fields whose values are never shown, as those are not whose types are L{SECRET}.
    @param ignore_unknown: whether unknown keys are ignored.

    @return: the valid values, by field, and the problems with the others.
    """
    fields = fields_by_key(structure)
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    unknown = 0
    for key, value in given.items():
        field = fields.get(key)
        if field is None:
            unknown += 1
            if not ignore_unknown and unknown <= _MOST_UNKNOWN:
                problems.append(unknown_key(key, fields, prefix=prefix, hint=unknown <= _MOST_HINTS))
            continue
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            secret = key in secrets or is_secret(field.type)
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


@lru_cache(maxsize=128)
def fields_by_key(structure: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """
    The fields of a structure, by the names that they have in the table. They are remembered, because msgspec
    resolves the annotations each time, which takes a quarter of a millisecond.
    """
    return {field.encode_name: field for field in msgspec.structs.fields(structure)}


def unknown_key(
    key: str, known: Collection[str], *, prefix: str = "", hint: bool = True, kind: str = "key"
) -> Problem:
    """
    The problem that a key is unknown, with the most similar known one.

    @param hint: whether to look for one.
    @param kind: what it is called.
    """
    near = _nearest(key, known) if hint else None
    meant = f"; did you mean {near!r}?" if near else ""
    return Problem(path=prefix + (shown_words(key) or '""'), rule=f"is not a known {kind}{meant}")


def misspelt(structure: type[msgspec.Struct], given: Collection[str]) -> frozenset[str]:
    """
    The fields that unknown keys were probably meant to be. If one is missing, that is no problem of its own.

    @param given: the keys of a table.
    """
    known = fields_by_key(structure)
    unknown = [key for key in given if key not in known][:_MOST_HINTS]
    return frozenset(filter(None, (_nearest(key, known) for key in unknown)))


def _nearest(key: str, known: Collection[str]) -> str | None:
    if (meant := _CALLED_ELSEWHERE.get(key.lower())) in known:
        return meant
    return _similar(key.lower(), tuple(known)) if len(key) <= _LONGEST_HINTED else None


@lru_cache(maxsize=256)
def _similar(key: str, known: tuple[str, ...]) -> str | None:
    # Imported here, because a valid configuration doesn't need it, and it costs 200 kB.
    import difflib

    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.5)), None)


def rule_of(kind: Any) -> str:
    """The rule that a field's type carries."""
    for meta in _metas(kind):
        if meta.description:
            return meta.description
    raise TypeError(f"{kind!r} carries no rule")


def is_secret(kind: Any) -> bool:
    """Whether the values of a field's type are never shown: see L{SECRET}."""
    return any((meta.extra or {}).get("secret") for meta in _metas(kind))


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    for part in (kind, *get_args(kind)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                yield meta
