"""Foreign text, made safe for a line of the log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

#: Characters that a terminal, a log or a header may take for a line break or a change of direction:
#: control characters, line separators, and those of Unicode's bidirectional algorithm (UAX 9). As
#: ranges of a character class in a regular expression.
UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

#: A secret with fewer characters is a word like others.
SHORT_SECRET = 8

# After an escape sequence (as in repr, or in a URL) a word begins, though the sequence ends with a letter.
_BEFORE_WORD = r"(?:(?<![^\W_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_AFTER_WORD = r"(?![^\W_])"

# The escape sequences of C that have a letter.
_LETTERS = {"\n": "n", "\r": "r", "\t": "t"}
# Of a character: four bytes, percent-encoded twice.
_LONGEST_SPELLING = 20

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
    Replace secrets in a text, in whatever notation.

    @param secrets: pairs of a secret and its replacement. See L{secret_pattern}.
    """
    for secret, instead in secrets:
        if secret:
            # What answers may change the case of, is still the secret.
            text = re.sub(secret_pattern(secret), instead.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


@lru_cache(maxsize=64)
def secret_pattern(secret: str) -> str:
    """
    A regular expression for a secret: as it is, and in the notations of URLs, JSON, HTML and Python, also one
    inside another, and mixed. One of fewer than L{SHORT_SECRET} characters is only recognized as a whole
    word: it occurs within many words, and replacing it there would give it away.

    @param secret: one character or more.
    """
    spelled = "".join(map(_spellings, secret))
    return spelled if len(secret) >= SHORT_SECRET else f"{_BEFORE_WORD}{spelled}{_AFTER_WORD}"


def longest_spelling(secret: str) -> int:
    """How many characters a secret may have in one notation, up to about as many as it has in two."""
    return len(secret) * _LONGEST_SPELLING


def _spellings(character: str) -> str:
    """
    A regular expression for a character, in any notation. Repetitions are bounded, so that a text that is
    full of them takes linear time.
    """
    code = ord(character)
    encoded = character.encode("utf-8", "surrogateescape" if 0xDC80 <= code <= 0xDCFF else "surrogatepass")
    two = character.encode("utf-16-be", "surrogatepass")
    choices = [
        re.escape(character) if character.isalnum() else rf"\\{{0,8}}{re.escape(character)}",
        # In a URL, and in its query.
        "".join(rf"(?i:%(?:25){{0,3}}{byte:02x})" for byte in encoded),
        *([r"\+"] if character == " " else []),
        # In JSON, and as Python's repr() has it.
        "".join(rf"\\{{1,8}}x(?i:{byte:02x})" for byte in encoded),
        rf"\\{{1,8}}[xuU]0{{0,6}}(?i:{code:x})",
        "".join(rf"\\{{1,8}}u(?i:{two[at : at + 2].hex()})" for at in range(0, len(two), 2)),
        *([rf"\\{{1,8}}{_LETTERS[character]}"] if character in _LETTERS else []),
    ]
    # In HTML. Its names are only imported if a secret has a character that may need one.
    numbers = [f"#0{{0,6}}{code}", f"#[xX]0{{0,6}}(?i:{code:x})"]
    if not (character.isascii() and character.isalnum()):
        from html.entities import html5

        numbers += [re.escape(name.rstrip(";")) for name, meant in html5.items() if meant == character]
    choices.append(f"&(?:amp;){{0,3}}(?:{'|'.join(numbers)});")
    return f"(?:{'|'.join(choices)})"
