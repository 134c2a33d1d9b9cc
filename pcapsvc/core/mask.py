"""
Keeps secrets out of texts.

A server may repeat what it was sent, and a library may put it into an exception. So the secrets of the
configuration are hidden in all that is logged or reported, whichever part of the daemon does that.

The query of a URL may be a secret as well: a request may have one that is signed. These come and go, so they
are not known by what they are, but by where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

#: What stands in the place of a secret.
HIDDEN = "<secret>"

#: A secret with fewer characters is a word like others.
SHORT_SECRET = 8

# After an escape sequence (as in repr, or in a URL) a word begins, though the sequence ends with a letter.
_BEFORE_WORD = r"(?:(?<![^\W_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_AFTER_WORD = r"(?![^\W_])"

# The escape sequences of C that have a letter.
_LETTERS = {"\n": "n", "\r": "r", "\t": "t"}
# Of a character: four bytes, percent-encoded twice.
_LONGEST_SPELLING = 20

# What every notation but the plain one has.
_ESCAPES = re.compile(r"[\\%&]")
# An ASCII character in one of them, in hexadecimal or decimal.
_ESCAPED = re.compile(
    r"(?:\\{1,8}[xuU]0{0,6}|%(?:25){0,3}|&(?:amp;){0,3}#[xX]0{0,6})([2-7][0-9A-Fa-f])"
    r"|&(?:amp;){0,3}#0{0,6}(\d{2,3})(?=;)"
)
_NAMED = re.compile(r"&(?:amp;){0,3}[A-Za-z][A-Za-z0-9]{1,31};")
_NO_LETTER = re.compile(r"[^A-Za-z0-9]+")
# How many letters and digits a secret must have, to be looked for by them.
_LEAST_LETTERS = 5

# A word that may be, or contain, a URL: up to what no URL contains. Where its server begins, and its query,
# in the notations of JSON and URLs.
_WORD = re.compile(r"[^\s\"'<>]+")
_SERVER = re.compile(r"(?i)https?(?::|%(?:25){0,3}3a)(?:\\{0,8}/|%(?:25){0,3}2f){2}")
_QUERY = re.compile(r"(?i)\?|\\{1,8}u003f|%(?:25){0,3}3f")
# In JSON, a character that needs no escape sequence and has one all the same: no quotation mark, and no
# backslash. The backslash in front of it is not one that is escaped itself.
_NEEDLESS = re.compile(r"(?<!\\)((?:\\\\)*)\\u00(?!22|5[cC]|7[fF])([2-7][0-9A-Fa-f])")
# What looks like a query in a message, up to the end of its text.
_QUERY_LIKE = re.compile(r"([?][^\s\"=?]{1,64}=)[^\"]*")


class Mask:
    """
    Replaces secrets in texts: as they are, and in the notations of Python, JSON, URLs and HTML. A secret that
    was taken apart or encoded otherwise is not recognized; a short one, only as a whole word. The queries of
    URLs are replaced as well.

    @ivar longest: how many characters the longest one may have in a text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Hide these secrets, instead of those before."""
        # The longest first, because one may be part of another.
        self._secrets = [_Known(secret) for secret in sorted({*secrets} - {""}, key=len, reverse=True)]
        self.longest = max((longest_spelling(known.secret) for known in self._secrets), default=0)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        text = without_queries(text)
        if not self._secrets:
            return text
        plain = text.casefold()
        letters = _letters(text) if _ESCAPES.search(text) else None
        for known in self._secrets:
            if known.may_be_in(plain, letters):
                text = known.pattern.sub(HIDDEN, text)
        return text


class _Known:
    """
    A secret. Most texts don't have it, and this is found out much faster than its pattern does: a long one
    that has only the characters of usual tokens is looked for by its letters and digits.
    """

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.pattern = re.compile(secret_pattern(secret), re.IGNORECASE)
        self._plain = secret.casefold()
        self._has_space = " " in secret
        letters = _NO_LETTER.sub("", secret).lower()
        usual = secret.isascii() and secret.isprintable() and not _ESCAPES.search(secret)
        self._letters = letters if usual and len(letters) >= _LEAST_LETTERS else ""

    def may_be_in(self, plain: str, letters: str | None) -> bool:
        """
        Whether a text may have it.

        @param plain: the text, case-folded.
        @param letters: its letters and digits; L{None} if it is not in any notation.
        """
        if self._plain in plain or (self._has_space and "+" in plain):
            return True
        return letters is not None and self._letters in letters


def _letters(text: str) -> str:
    """The letters and digits of ASCII in a text in any notation."""
    decoded = _ESCAPED.sub(lambda found: chr(int(found[1], 16) if found[1] else int(found[2])), text)
    return _NO_LETTER.sub("", _NAMED.sub("", decoded)).lower()


def without_queries(text: str) -> str:
    """A text in which the query of each URL is hidden. What follows it without a space, is as well."""
    if _SERVER.search(text) is None:
        return text

    def hidden(found: re.Match[str]) -> str:
        word = found[0]
        server = _SERVER.search(word)
        query = None if server is None else _QUERY.search(word, server.end())
        if query is None or query.end() == len(word):
            return word
        return word[: query.end()] + HIDDEN

    return _WORD.sub(hidden, text)


def without_values(message: str, fields: Iterable[str]) -> str:
    """
    A message in JSON in which the texts of these fields are hidden, in whatever case their names are; and of
    others whatever looks like a query, as a name may be misspelt. If there is a list or an object in place of
    a text, all that follows is hidden.
    """
    names = "|".join(map(re.escape, fields))
    if not names:
        return message
    message = _NEEDLESS.sub(lambda found: found[1] + chr(int(found[2], 16)), message)
    field = rf'(?is)("(?:{names})"\s*:\s*)(?:"(?:[^"\\]|\\.)*(?:"|\Z)|[\[{{].*)'
    return _QUERY_LIKE.sub(rf"\1{HIDDEN}", re.sub(field, rf'\1"{HIDDEN}"', message))


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
    spelled, start = "", r"\\{1,8}"
    for piece in re.findall(r"\\+|[^\\]", secret):
        if piece.startswith("\\"):
            spelled, start = spelled + _backslashes(len(piece)), r"\\{0,8}"
        else:
            spelled, start = spelled + f"(?:{'|'.join(_notations(piece, start))})", r"\\{1,8}"
    return spelled if len(secret) >= SHORT_SECRET else f"{_BEFORE_WORD}{spelled}{_AFTER_WORD}"


def longest_spelling(secret: str) -> int:
    """How many characters a secret may have in one notation, up to about as many as it has in two."""
    return len(secret) * _LONGEST_SPELLING


def _backslashes(count: int) -> str:
    """
    A regular expression for so many backslashes in a row, all in the same notation. It matches all that are
    there, also those that begin the notation of the next character, and never gives any of them back: to try
    all the ways to share them out takes exponential time.
    """
    others = "|".join(_notations("\\", r"\\{1,8}")[1:])
    return rf"(?:\\{{{count},{9 * count + 8}}}+|(?:{others}){{{count}}})"


def _notations(character: str, start: str) -> list[str]:
    """
    Regular expressions for a character: as it is, and in each other notation. Repetitions are bounded, and no
    notation is there twice, so that a text that is full of them takes linear time.

    @param start: matches the backslashes with which a notation begins.
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
        rf"{start}[xuU]0{{0,6}}(?i:{code:x})",
        *([rf"{start}{_LETTERS[character]}"] if character in _LETTERS else []),
    ]
    # Where that is the same, it must not be there twice: what is almost a secret would double the time with
    # each character.
    if code > 0x7F:
        choices.append(start + r"\\{1,8}".join(rf"x(?i:{byte:02x})" for byte in encoded))
    if code > 0xFFFF:
        choices.append(start + r"\\{1,8}".join(rf"u(?i:{two[at : at + 2].hex()})" for at in (0, 2)))
    # In HTML. Its names are only imported if a secret has a character that may need one.
    numbers = [f"#0{{0,6}}{code}", f"#[xX]0{{0,6}}(?i:{code:x})"]
    if not (character.isascii() and character.isalnum()):
        from html.entities import html5

        numbers += sorted({name.rstrip(";").lower() for name, meant in html5.items() if meant == character})
    choices.append(f"&(?:amp;){{0,3}}(?:{'|'.join(numbers)});")
    return choices


#: Hides the secrets of this process' configuration, once they are known.
of_process = Mask()
