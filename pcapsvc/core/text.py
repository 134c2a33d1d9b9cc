"""Foreign text, made safe for a line of the log."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pcapsvc.core.mask import of_process, without_secrets

#: Characters that a terminal, a log or a header may take for a line break or a change of direction:
#: control characters, line separators, and those of Unicode's bidirectional algorithm (UAX 9). As
#: ranges of a character class in a regular expression.
UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

# The same, white space, and lone surrogates, which can't be encoded in UTF-8.
_CONTROL = re.compile(rf"[{UNSAFE} \xa0\ud800-\udfff]+")


def counted(number: int, noun: str) -> str:
    """A number with its noun: C{1 packet}, C{2 packets}."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(text: str, *, most: int = 300, secrets: Iterable[tuple[str, str]] = ()) -> str:
    """
    Put a text on one line, without control characters, and without the secrets of the process.

    @param most: how many characters to keep. An ellipsis replaces the rest.
    @param secrets: others; see L{without_secrets}.
    """
    secrets = tuple(secrets)
    # Before and after: a secret may contain white space, and white space may be inserted into one. And before
    # the text is cut, as half of a secret would not be recognized later.
    text = _CONTROL.sub(" ", of_process(without_secrets(text, secrets))).strip()
    text = of_process(without_secrets(text, secrets))
    return text if len(text) <= most else text[:most] + "…"
