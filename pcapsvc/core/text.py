"""Foreign text, made safe for a line of the log."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pcapsvc.core.mask import longest_spelling, of_process, without_secrets

#: Characters that a terminal, a log or a header may take for a line break or a change of direction:
#: control characters, line separators, and those of Unicode's bidirectional algorithm (UAX 9). As
#: ranges of a character class in a regular expression.
UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

#: Lone surrogates, which can't be encoded in UTF-8, as a range of such a class. Python has them in place of
#: the bytes of an option or a name that aren't UTF-8 (PEP 383).
SURROGATES = r"\ud800-\udfff"

# How much longer a text may be than what is kept of it, before white space and secrets are replaced.
_SPARE_CHARACTERS = 4096

_CONTROL = re.compile(rf"[{UNSAFE} \xa0{SURROGATES}]+")
_SURROGATE = re.compile(rf"[{SURROGATES}]")


def has_surrogates(text: str) -> bool:
    """Whether a text can't be encoded in UTF-8."""
    return _SURROGATE.search(text) is not None


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
    longest = max([of_process.longest, *(longest_spelling(secret) for secret, _ in secrets)])
    # Looking for secrets takes milliseconds for a text of 10,000 characters.
    is_cut = len(text) > (room := most + _SPARE_CHARACTERS + 2 * longest)
    text = text[:room]
    # Before and after: a secret may contain white space, and white space may be inserted into one. And before
    # the text is cut, as half of a secret would not be recognized later.
    text = _CONTROL.sub(" ", of_process(without_secrets(text, secrets))).strip()
    text = of_process(without_secrets(text, secrets))
    if is_cut:
        # Without what may be the beginning of a secret.
        return f"{text[: min(most, max(0, len(text) - longest))]}…"
    return text if len(text) <= most else text[:most] + "…"
