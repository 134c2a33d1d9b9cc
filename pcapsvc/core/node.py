"""Whether a message is for this node."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pcapsvc.core.errors import NodeBusy, Problem, RequestRejected, shown, shown_words

#: The keyword that stands for every node.
ANY_NODE = "any"

#: The longest regular expression, in characters.
MAX_PATTERN_CHARACTERS = 1024

#: Estimated at more than this, in seconds, an expression is rejected without being compiled.
MAX_PATTERN_SECONDS = 0.004

# Up to this estimate, an expression is compiled whenever one arrives.
_CHEAP_SECONDS = 0.0003
# How many outcomes are remembered, of cheap and of costly expressions each: a flood of cheap ones must not
# push out the others.
_REMEMBERED = 256

# 4096 instructions. A larger program is given up when it gets there, after about a millisecond.
_MAX_PROGRAM_BYTES = 1 << 18

_REPETITION = re.compile(r"(\)?)\{([0-9]{1,4})(?:,([0-9]{0,4}))?\}")


def estimated_seconds(pattern: str) -> float:
    """
    Roughly how long RE2 takes to compile an expression. Measured on random expressions of all its
    constructs, and meant to be too high rather than too low.
    """
    count = pattern.count
    operators = sum(map(count, ".?*+|\\[("))
    microseconds = 0.1 * len(pattern) + 1.6 * operators
    if not pattern.isascii() or "\\x" in pattern:
        # A range of characters becomes ranges of UTF-8 sequences; if case is ignored, many of them.
        microseconds += 15 * (count("[") + count("-")) + 0.4 * len(pattern)
    # A Unicode class has up to 700 ranges.
    microseconds += 400 * (count("\\p") + count("\\P"))
    if "{" in pattern:
        for group, least, most in _REPETITION.findall(pattern):
            # RE2 allows nested repetitions of up to 1,000 in all.
            microseconds += 1000 if group else max(int(least), int(most or 0))
    return microseconds / 1e6


@lru_cache(maxsize=1)
def _engine() -> tuple[Any, Any]:
    """
    RE2, and the options to compile expressions with. It is imported for the first expression: many nodes
    never receive one, and it takes 2 ms and 1.6 MB.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PROGRAM_BYTES
    return re2, options


class NodeMatcher:
    """
    Matches the addresses of messages against the name of this node.

    @param may_spend: whether a source may use this many seconds for an expression that is not cheap to
        compile; called with the source and the seconds.
    """

    def __init__(
        self, name: str, may_spend: Callable[[str, float], bool] = lambda source, seconds: True
    ) -> None:
        self.name = name
        self._may_spend = may_spend
        # A rule of an alerting system sends the same expression again and again, whether it is good or not.
        self._cheap = lru_cache(maxsize=_REMEMBERED)(self._judged)
        self._costly: dict[str, bool | RequestRejected] = {}

    def matches(self, node: Any, nodere: Any, source: str = "") -> bool:
        """
        Whether a message with these two fields, unvalidated, is for this node.

        C{node} must be equal to the name, or C{any}; C{nodere} is searched for in it
        (RE2, as in Go's C{regexp.MatchString}). A message that can't be matched, because both
        are missing, of a wrong type or too long, is for every node to reject.

        @param source: the name of the source that the message arrived through.

        @raise RequestRejected: if C{nodere} is not a regular expression, or too costly to compile.
        @raise NodeBusy: if the source has sent too many costly expressions lately.
        """
        if node is None or node == "":
            if nodere == "" or not isinstance(nodere, str):
                return True
            return self._search(nodere, source)
        if not isinstance(node, str) or node in (self.name, ANY_NODE):
            return True
        return isinstance(nodere, str) and nodere != "" and self._search(nodere, source)

    def _search(self, pattern: str, source: str) -> bool:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            return True
        outcome = self._cheap(pattern)
        if outcome is None:
            outcome = self._costly.get(pattern)
            if outcome is None:
                if not self._may_spend(source, estimated_seconds(pattern)):
                    raise NodeBusy(f"the regular expressions from {source} take too much time")
                outcome = self._compiled(pattern)
                if len(self._costly) >= _REMEMBERED:
                    del self._costly[next(iter(self._costly))]
                self._costly[pattern] = outcome
        if outcome is True or outcome is False:
            return outcome
        raise RequestRejected(outcome.problems)

    def _judged(self, pattern: str) -> bool | RequestRejected | None:
        """Whether the name matches; or why the pattern is rejected; L{None} if it is costly to find out."""
        seconds = estimated_seconds(pattern)
        if seconds > MAX_PATTERN_SECONDS:
            return _bad_pattern(pattern, "must be simpler: it would take too long to compile")
        return None if seconds > _CHEAP_SECONDS else self._compiled(pattern)

    def _compiled(self, pattern: str) -> bool | RequestRejected:
        re2, options = _engine()
        try:
            return re2.compile(pattern, options).search(self.name) is not None
        except re2.error as error:
            said = error.args[0]
            words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
            return _bad_pattern(pattern, f"must be a regular expression ({shown_words(words)})")
        except UnicodeEncodeError:
            return _bad_pattern(pattern, "must be a regular expression in UTF-8")


def _bad_pattern(pattern: str, rule: str) -> RequestRejected:
    return RequestRejected([Problem(path="nodere", value=shown(pattern), rule=rule)])
