"""Which metrics and labels an expression in PromQL names, without evaluating it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

# https://prometheus.io/docs/prometheus/latest/querying/basics/ and operators/
_TOKEN = re.compile(
    r"""
      (?P<space>\s+ | \#[^\n]*)
    | (?P<string>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*`)
    | (?P<range>\[[^\]]*\])
    | (?P<number>[0-9][0-9a-fA-Fx.]*(?:[eE][+-]?[0-9]+)? (?:ms|[smhdwy])? )
    | (?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},@])
    """,
    re.VERBOSE,
)
_TAKE_LABELS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_OPERATORS = frozenset({"and", "or", "unless", "offset", "bool", "inf", "nan", "start", "end"})


@dataclass(frozen=True)
class Selector:
    """A metric, and the labels that its matchers name."""

    metric: str
    labels: frozenset[str]


@dataclass(frozen=True)
class Query:
    """
    An expression.

    @ivar selectors: what it selects.
    @ivar grouped: the labels that it groups or matches by.
    """

    selectors: tuple[Selector, ...]
    grouped: frozenset[str]


def read(expression: str) -> Query:
    """
    Read an expression.

    @raise ValueError: if it can't be read: it has other signs, or brackets without a partner.
    """
    words = [*_tokens(expression)]
    selectors: list[Selector] = []
    grouped: set[str] = set()
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        following = words[at] if at < len(words) else ""
        if word in _TAKE_LABELS and following == "(":
            end = words.index(")", at)
            grouped.update(each for each in words[at + 1 : end] if each != ",")
            at = end + 1
        elif re.fullmatch(r"[a-zA-Z_:][\w:]*", word) and word.lower() not in _OPERATORS | _TAKE_LABELS:
            if following == "{":
                end = words.index("}", at)
                matchers = words[at + 1 : end]
                labels = {each for each, sign in pairwise(matchers) if sign[0] in "=!"}
                selectors.append(Selector(word, frozenset(labels)))
                at = end + 1
            # Otherwise it is a function or an aggregation, whose labels may come first.
            elif following != "(" and following not in _TAKE_LABELS:
                selectors.append(Selector(word, frozenset()))
    if words.count("(") != words.count(")"):
        raise ValueError(f"brackets without a partner: {expression}")
    return Query(tuple(selectors), frozenset(grouped))


def _tokens(expression: str) -> Iterator[str]:
    at = 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"{expression[at:]!r} in {expression}")
        at = match.end()
        if match.lastgroup in ("word", "sign"):
            yield match[0]
        elif match.lastgroup == "string":
            yield '""'
