"""Foreign text, made safe for a line of the log."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from urllib.parse import quote, quote_plus

#: Characters that a terminal, a log or a header may take for a line break or a change of direction:
#: control characters, line separators, and those of Unicode's bidirectional algorithm (UAX 9). As
#: ranges of a character class in a regular expression.
UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

#: A secret with fewer characters is a word like others.
SHORT_SECRET = 8

# After an escape sequence (as in repr, or in a URL) a word begins, though the sequence ends with a letter.
_BEFORE_WORD = r"(?:(?<![^\W_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_AFTER_WORD = r"(?![^\W_])"

# The same, white space, and lone surrogates, which can't be encoded in UTF-8.
_CONTROL = re.compile(rf"[{UNSAFE} \xa0\ud800-\udfff]+")


def counted(number: int, noun: str) -> str:
    """A number with its noun: C{1 packet}, C{2 packets}."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(text: str, *, most: int = 300, secrets: Iterable[tuple[str, str]] = ()) -> str:
    """
    Put a text on one line, without control characters.

    @param most: how many characters to keep. An ellipsis replaces the rest.
    @param secrets: see L{without_secrets}.
    """
    secrets = tuple(secrets)
    # Before and after: a secret may contain white space, and white space may be inserted into one.
    text = without_secrets(_CONTROL.sub(" ", without_secrets(text, secrets)).strip(), secrets)
    return text if len(text) <= most else text[:most] + "…"


def without_secrets(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """
    Replace secrets in a text, both as they are and percent-encoded.

    @param secrets: pairs of a secret and its replacement. See L{secret_pattern} for short ones.
    """
    for secret, instead in secrets:
        forms = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)} - {""}
        if forms:
            # The hexadecimal digits of percent-encoding may have either case, so the case is ignored.
            pattern = secret_pattern(secret, forms)
            text = re.sub(pattern, instead.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def secret_pattern(secret: str, forms: Collection[str]) -> str:
    """
    A regular expression for a secret. One of fewer than L{SHORT_SECRET} characters is only recognized as a
    whole word: it occurs within many words, and replacing it there would give it away.

    @param forms: the forms in which the secret may be spelled; none is empty.
    """
    choice = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return f"(?:{choice})" if len(secret) >= SHORT_SECRET else f"{_BEFORE_WORD}(?:{choice}){_AFTER_WORD}"
