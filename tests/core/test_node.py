"""For which nodes a message is."""

from __future__ import annotations

import itertools

from twisted.trial import unittest

from pcapsvc.core.errors import NodeBusy, RequestRejected
from pcapsvc.core.node import MAX_PATTERN_CHARACTERS, NodeMatcher
from tests.cost import takes_less
from tests.examples import given, settings
from tests.examples import strategies as st


class NodeMatcherTests(unittest.SynchronousTestCase):
    """The two fields of the address, against a name."""

    def setUp(self) -> None:
        """A node."""
        self.matcher = NodeMatcher("sensor1.example")

    def rule(self, pattern: str) -> str:
        """The rule that a pattern breaks."""
        rejection = self.assertRaises(RequestRejected, self.matcher.matches, None, pattern)
        [problem] = rejection.problems
        self.assertEqual(problem.path, "nodere")
        return problem.rule

    def test_node(self) -> None:
        """A node's name is compared as it is; C{any} is every node."""
        for node, expected in (
            ("sensor1.example", True),
            ("any", True),
            ("sensor1", False),
            ("Sensor1.example", False),
            ("sensor1.example ", False),
            ("sensor1xexample", False),
            ("ANY", False),
            (".*", False),
        ):
            self.assertIs(self.matcher.matches(node, None), expected, node)
            self.assertIs(self.matcher.matches(node, ""), expected, node)

    def test_nodere(self) -> None:
        """An expression is searched for, and means what it means in Go."""
        for pattern, expected in (
            ("sensor", True),
            ("ensor1", True),
            ("^sensor", True),
            ("^ensor", False),
            ("example$", True),
            ("sensor$", False),
            (r"\Asensor\d\.example\z", True),
            ("SENSOR", False),
            ("(?i)SENSOR", True),
            ("^(?:sensor1|sensor2)", True),
            (r"^\pL+\d", True),
            ("[[:digit:]]", True),
            ("x*", True),
            ("any", False),
            ("(?P<name>sensor)", True),
            ("s.nsor", True),
            (r"sensor1\.example\n?$", True),
            ("^$", False),
            (".", True),
        ):
            self.assertIs(self.matcher.matches(None, pattern), expected, pattern)
            self.assertIs(self.matcher.matches("", pattern), expected, pattern)

    def test_bad_patterns(self) -> None:
        """What Go would not compile is refused: also what Perl and Python would."""
        for pattern in (
            "(",
            "[",
            "*",
            "a**",
            r"(a)\1",
            "(?=a)",
            "(?<!a)",
            "a{2,1}",
            "(?P<n",
            r"\Z",
            "a{1001}",
            "\\",
        ):
            self.assertIn("must be a regular expression", self.rule(pattern), pattern)

    def test_hostile_patterns(self) -> None:
        """No expression costs more than a moment, to compile or to search for."""
        patterns = (
            "(a+)+$x",
            "(a*)*b",
            "(a|aa)+$y",
            "(.*)" * 200 + "z",
            "((a{30}){30}){30}",
            "(" * 500 + "z" + ")" * 500,
            r"[\pL\pN]{500}" * 2,
            "a{1000}" * 100,
        )

        def match() -> None:
            matcher = NodeMatcher("a" * 255)
            for pattern in patterns:
                try:
                    self.assertFalse(matcher.matches(None, pattern), pattern)
                except RequestRejected:
                    pass

        self.assertTrue(takes_less(2, match))

    def test_length(self) -> None:
        """An expression that is too long is every node's to refuse, and isn't compiled."""
        self.assertTrue(self.matcher.matches(None, "s|".ljust(MAX_PATTERN_CHARACTERS, "x")))
        self.assertTrue(self.matcher.matches(None, "(" * (MAX_PATTERN_CHARACTERS + 1)))
        self.assertTrue(self.matcher.matches("other", "x" * (MAX_PATTERN_CHARACTERS + 1)))

    def test_rule_on_one_line(self) -> None:
        """What RE2 says about a pattern is reported on one short line, whatever the pattern contains."""
        for pattern in ("(\n\x1b[31m", "(" * 1000, "(ü\u2028"):
            rule = self.rule(pattern)
            self.assertLess(len(rule), 150)
            self.assertTrue(rule.isprintable(), rule)

    def test_surrogates(self) -> None:
        """A pattern that has no UTF-8 is refused."""
        self.assertEqual(self.rule("\ud800"), "must be a regular expression in UTF-8")

    def test_no_address(self) -> None:
        """A message that can't be matched is every node's to refuse."""
        for node, nodere in (
            (None, None),
            ("", ""),
            (5, None),
            ([], None),
            ([], "other"),
            (None, 5),
            ("", ["x"]),
        ):
            self.assertTrue(self.matcher.matches(node, nodere), (node, nodere))

    def test_both(self) -> None:
        """A message with both is for the nodes of either, which will refuse it."""
        self.assertTrue(self.matcher.matches("sensor1.example", "other"))
        self.assertTrue(self.matcher.matches("other", "sensor"))
        self.assertFalse(self.matcher.matches("other", "another"))
        self.assertFalse(self.matcher.matches("other", 5))

    def test_again(self) -> None:
        """A pattern that comes again is answered, or refused, as before."""
        for _ in range(3):
            self.assertTrue(self.matcher.matches(None, "sensor"))
            self.assertFalse(self.matcher.matches(None, "other"))
            self.assertRaises(RequestRejected, self.matcher.matches, None, "(")


#: One of RE2's Unicode classes, of 700 ranges, after another.
CLASSES = r"(?i)" + r"\pL" * 330


class CostTests(unittest.SynchronousTestCase):
    """How much time a sender can take from a node before it is known whom a message is for."""

    def setUp(self) -> None:
        """A node that records what its sources spend, and lets them as long as they may."""
        self.spent: list[tuple[str, float]] = []
        self.may = True
        self.matcher = NodeMatcher("sensor1.example", self.spend)

    def spend(self, source: str, seconds: float) -> bool:
        """Record it."""
        self.spent.append((source, seconds))
        return self.may

    def refused(self, pattern: str) -> str:
        """Why a pattern is rejected."""
        rejection = self.assertRaises(RequestRejected, self.matcher.matches, None, pattern, "redis")
        return str(rejection)

    def test_too_costly(self) -> None:
        """An expression that would take long is rejected without being compiled, each time it arrives."""
        numbers = itertools.count()

        def refuse() -> None:
            for number in itertools.islice(numbers, 100):
                self.assertIn("must be simpler", self.refused(f"{CLASSES}{number}"))

        # To compile a single one would take longer.
        self.assertTrue(takes_less(100 * 0.001, refuse))

    def test_refusals_are_remembered(self) -> None:
        """An expression that was refused once costs nothing when it arrives again."""
        costly = r"(?i)(\pL{500})" * 2
        first = self.refused(costly)

        def refuse() -> None:
            for _ in range(100):
                self.assertEqual(self.refused(costly), first)

        self.assertTrue(takes_less(100 * 0.0005, refuse))
        self.assertEqual(len(self.spent), 1)

    def test_budget(self) -> None:
        """A source with no time left is busy with costly expressions; known and cheap ones still work."""
        known, new = r"^\pL+1", r"^\pL+2"
        self.assertTrue(self.matcher.matches(None, known, "redis"))
        self.may = False
        busy = self.assertRaises(NodeBusy, self.matcher.matches, None, new, "redis")
        self.assertEqual(str(busy), "the regular expressions from redis take too much time")
        self.assertTrue(self.matcher.matches(None, known, "redis"))
        self.assertTrue(self.matcher.matches(None, "^sensor[0-9]", "redis"))
        self.assertEqual([source for source, _ in self.spent], ["redis", "redis"])
        self.may = True
        self.assertFalse(self.matcher.matches(None, new, "redis"))

    def test_ordinary(self) -> None:
        """What alerting systems send is cheap: it spends nothing."""
        for pattern in (
            r"^(web|api)-17\d\.(ams|fra)\.",
            "^(" + "|".join(f"edge-{number:04}" for number in range(90)) + ")$",
            r"(?i)^db-[0-9]{2,3}\.example\.(com|net)$",
        ):
            self.matcher.matches(None, pattern, "redis")
        self.assertEqual(self.spent, [])

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                r". \w \W [^a] [a-z] \pL \PN (?i) é [à-ÿ] x{9} (.{20}) {50} ? * + | ( ) \x{100} web".split()
            ),
            max_size=300,
        ).map("".join)
    )
    def test_bounded(self, pattern: str) -> None:
        """Whatever the expression is, no single one takes long."""

        def match() -> None:
            try:
                NodeMatcher("sensor1.example").matches(None, pattern)
            except RequestRejected:
                pass

        self.assertTrue(takes_less(0.015, match), pattern)
