"""Whether a message is for this node."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

from pcapsvc.core.errors import Problem, RequestRejected, shown, shown_words

#: The keyword that stands for every node.
ANY_NODE = "any"

#: The longest regular expression, in characters. One of a thousand can take 50 ms to compile.
MAX_PATTERN_CHARACTERS = 1024

_options = re2.Options()
_options.log_errors = False
_options.max_mem = 1 << 20


class NodeMatcher:
    """Matches the addresses of messages against the name of this node."""

    def __init__(self, name: str) -> None:
        self.name = name
        # One rule of an alerting system sends the same expression again and again.
        self._search = lru_cache(maxsize=256)(self._search_name)

    def matches(self, node: Any, nodere: Any) -> bool:
        """
        Whether a message with these two fields, as they stand in it, is for this node.

        C{node} must be equal to the name, or C{any}; C{nodere} is searched for in it
        (RE2, as in Go's C{regexp.MatchString}). A message that can't be matched, since both
        are missing, of a wrong type or too long, is every node's to refuse.

        @raise RequestRejected: where C{nodere} is no regular expression.
        """
        if node is None or node == "":
            if nodere == "" or not isinstance(nodere, str):
                return True
            return self._search(nodere)
        if not isinstance(node, str) or node in (self.name, ANY_NODE):
            return True
        return isinstance(nodere, str) and nodere != "" and self._search(nodere)

    def _search_name(self, pattern: str) -> bool:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            return True
        try:
            return re2.compile(pattern, _options).search(self.name) is not None
        except re2.error as error:
            said = error.args[0]
            words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
            raise _bad_pattern(pattern, f"must be a regular expression ({shown_words(words)})") from None
        except UnicodeEncodeError:
            raise _bad_pattern(pattern, "must be a regular expression in UTF-8") from None


def _bad_pattern(pattern: str, rule: str) -> RequestRejected:
    return RequestRejected([Problem(path="nodere", value=shown(pattern), rule=rule)])
