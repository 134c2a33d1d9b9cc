"""Validation of a table of values against a structure's fields."""

from __future__ import annotations

import datetime
import itertools
import json
from typing import Annotated

import msgspec
from msgspec import Meta
from twisted.trial import unittest

from pcapsvc.core.errors import Problem, shown, shown_words
from pcapsvc.core.fields import check_fields, rule_of, unknown_key
from pcapsvc.core.request import RequestFields
from tests.cost import takes_less

Small = Annotated[int, Meta(ge=1, le=9, description="a digit but 0")]


class Table(msgspec.Struct, rename={"class_": "class"}):
    """A structure with a renamed field, an optional one, and a secret."""

    class_: Small = 1
    word: Annotated[str, Meta(max_length=5, description="a short word")] | None = None
    token: Annotated[str, Meta(min_length=3, description="a token")] = "???"


class CheckFieldsTests(unittest.SynchronousTestCase):
    """Each value."""

    def test_good(self) -> None:
        """Valid values are returned by field, and nothing else."""
        self.assertEqual(check_fields(Table, {"class": 5, "word": "a"}), ({"class_": 5, "word": "a"}, []))
        self.assertEqual(check_fields(Table, {}), ({}, []))

    def test_problems(self) -> None:
        """Invalid values are reported with the rule of their type; the others are still returned."""
        values, problems = check_fields(Table, {"class": 10, "word": "longer", "token": "abc"}, prefix="t.")
        self.assertEqual(values, {"token": "abc"})
        self.assertEqual(
            [str(problem) for problem in problems],
            ["t.class = 10: must be a digit but 0", 't.word = "longer": must be a short word'],
        )

    def test_secrets(self) -> None:
        """Neither the value nor the type of a secret is shown."""
        for value in ("ab", 12345, ["hidden"]):
            _, problems = check_fields(Table, {"token": value}, secrets={"token"})
            self.assertEqual(problems, [Problem(path="token", rule="must be a token")])

    def test_unknown(self) -> None:
        """A field that is renamed in the table isn't known there by its own name."""
        _, problems = check_fields(Table, {"class_": 5}, prefix="t.")
        self.assertEqual(
            problems, [Problem(path="t.class_", rule="is not a known key; did you mean 'class'?")]
        )
        self.assertEqual(check_fields(Table, {"class_": 5}, ignore_unknown=True), ({}, []))

    def test_called_otherwise(self) -> None:
        """The hint for what answers call a filter is what requests call it, if the table has that."""
        for key in ("filter", "Filter"):
            rule = unknown_key(key, ("folder", "bpf")).rule
            self.assertEqual(rule, "is not a known key; did you mean 'bpf'?")
        self.assertEqual(
            unknown_key("filter", ("folder",)).rule, "is not a known key; did you mean 'folder'?"
        )

    def test_nearest(self) -> None:
        """The most similar name is found regardless of case, and none if none is similar."""
        self.assertIn("'word'", unknown_key("WRD", ["word", "class"]).rule)
        self.assertNotIn("mean", unknown_key("zzz", ["word", "class"]).rule)

    def test_no_words(self) -> None:
        """A type without a rule is a programming error."""
        self.assertRaises(TypeError, rule_of, int)


class ShownTests(unittest.SynchronousTestCase):
    """Values from outside in messages."""

    def test_short(self) -> None:
        """A short value is shown in full, and a long one shortened."""
        self.assertEqual(shown("a\n"), r'"a\n"')
        self.assertEqual(len(shown("x" * 5000)), 81)
        self.assertEqual(shown_words("a\n'b'"), "a\\n'b'")
        self.assertEqual(shown_words("x" * 5000), "x" * 80 + "…")

    def test_notation(self) -> None:
        """A value is shown as a sender of JSON, or the author of a TOML file, would write it."""
        for value in (
            *(None, True, False, 7, -0.5, 1e300, "", "it's", 'a "b"', "\\", "caf\u00e9 \U0001f600"),
            *([], [1, "a", None], {}, {"a": {"b": [True, "x'y"]}}),
        ):
            self.assertEqual(json.loads(shown(value)), value)
            self.assertEqual(shown(value), json.dumps(value, ensure_ascii=False))
        for text in ("\x00\x1b[2J", "\u202e\u2028", "\ud800", "\U000e0001", "a\tb"):
            self.assertTrue(shown(text).isprintable())
            self.assertEqual(json.loads(shown(text)), text)
        self.assertEqual(shown(datetime.date(1979, 5, 27)), "1979-05-27")
        self.assertEqual(shown(1 << 20_000), f"{hex(1 << 20_000)[:80]}…")

    def test_nested(self) -> None:
        """A value may be nested as deeply as it likes."""
        value: list[object] = []
        for _ in range(100_000):
            value = [value]
        self.assertEqual(shown(value), "[" * 80 + "…")
        while value:  # taken apart by hand, as its deallocation would be nested, too
            value = value.pop()  # type: ignore[assignment]


class CostTests(unittest.SynchronousTestCase):
    """How much time a table that a sender wrote can take."""

    def test_misspelt_keys(self) -> None:
        """A similar name is looked for only for the first few keys, and only if they are short."""
        misspelt = {f"wor{number:03}": 1 for number in range(20)}
        _, problems = check_fields(Table, {"x" * 60_000: 1, **misspelt})
        self.assertEqual(sum("did you mean" in problem.rule for problem in problems), 2)
        self.assertEqual(len(problems), 20 + 1)

    def test_time(self) -> None:
        """Twenty misspelt keys, never the same ones, cost less than half a millisecond."""
        numbers = itertools.count()

        def check() -> None:
            for number in itertools.islice(numbers, 100):
                check_fields(RequestFields, {f"packt{number}x{each}": 1 for each in range(20)})

        self.assertTrue(takes_less(100 * 0.01, check))

    def test_types_are_resolved_once(self) -> None:
        """A valid table costs microseconds."""
        check_fields(RequestFields, {})

        def check() -> None:
            for _ in range(1000):
                check_fields(RequestFields, {"packets": 5})

        self.assertTrue(takes_less(1000 * 0.00005, check))

    def test_large_values(self) -> None:
        """A value is shown as far as it is shown, and no further, however large it is."""
        for value in (
            [[]] * 30_000,
            [[[1]] * 100] * 100,
            {str(number): {} for number in range(20_000)},
            "x" * 10**6,
        ):
            self.assertEqual(len(shown(value)), 81)
            self.assertTrue(json.dumps(value).startswith(shown(value)[:-1]), shown(value))

        def show() -> None:
            for _ in range(100):
                shown([[]] * 30_000)
                shown_words("x" * 10**6)

        self.assertTrue(takes_less(100 * 0.01, show))
