"""The body of a message as JSON: its fields, not validated yet."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection
from typing import Any, TypeVar

import msgspec

from pcapsvc.core.errors import Problem, RequestRejected
from pcapsvc.core.names import canonical_names

#: The longest body that is decoded, in bytes.
MAX_BODY_BYTES = 65536

# More than a person or a program would ever send. Each costs some microseconds.
_MOST_KEYS = 1000

# Up to this many pieces of a label that are not UTF-8 are read as Windows-1252. Each runs some Python.
_MOST_READ = 1000

# In UTF-8 it would be this, if it were allowed there (RFC 3629, section 3).
_ENCODED_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
# What stands for one until its field is known: a character that is never assigned (the Unicode Standard,
# section 23.7).
_HALF = b"\\uffff"
_HALF_TEMPLATE = re.escape(_HALF)

# An escape sequence that is half of a surrogate pair without its other half (RFC 8259, section 7), in a body
# whose escaped backslashes are hidden. Neither this nor anything below runs Python for each of them: a body
# may be full of them.
_LONE_HALF = re.compile(
    rb"\\u[Dd][89ABab][0-9A-Fa-f]{2}(?!\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
    rb"|(?<!\\u[Dd][89ABab][0-9A-Fa-f]{2})\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}"
)
# Two bytes that no JSON text has stand for an escaped backslash.
_ESCAPED_BACKSLASH, _HIDDEN_BACKSLASH = b"\\\\", b"\0\0"

# Its characters by their bytes. Python's own codec takes a microsecond for each byte that has none.
_WINDOWS_1252 = bytes(range(256)).decode("cp1252", "replace")

# Bytes that are no part of a character in UTF-8 (the Unicode Standard, table 3-7).
_NOT_UTF8 = re.compile(
    rb"(?:(?![\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})[\x80-\xff])+"
)
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "a byte order mark (EF BB BF)",
    codecs.BOM_UTF16_LE: "the byte order mark of UTF-16 (FF FE)",
    codecs.BOM_UTF16_BE: "the byte order mark of UTF-16 (FE FF)",
}

# RFC 8259, section 2.
_WHITE_SPACE = b" \t\n\r"

# What counts as "not given", if the same field is there in another case.
_ABSENT = frozenset((b"null", b'""', b"[]", b"0"))

_Decoded = TypeVar("_Decoded")
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value_decoder = msgspec.json.Decoder(Any)


class OutOfRange:
    """
    A value with a number that can't be represented: too large, or of too many digits.

    @ivar text: as it is in the body.
    """

    def __init__(self, raw: bytes) -> None:
        self.text = raw.decode("utf-8", "replace")

    @property
    def is_large(self) -> bool:
        """Whether it is a positive whole number."""
        return self.text.isdecimal()

    def __repr__(self) -> str:
        return repr(self.text)[1:-1]


class Fields:
    """
    The fields of a message, each undecoded.

    @param body: the message.
    @param names: those that are known. One in another case is found by its own name: see
        L{canonical_names}.

    @raise RequestRejected: if it is not a JSON object, or has too many keys, or is too long.

    @ivar keys: the names, and the keys that are not known.
    """

    def __init__(self, body: bytes, names: Collection[str]) -> None:
        self._body = body
        self._raw, self._mended = _decoded(body, _fields_decoder)
        if len(self._raw) > _MOST_KEYS:
            raise _not_a_request(f"must have up to {_MOST_KEYS} keys, and has {len(self._raw)}")
        self._raw = canonical_names(self._raw, names, lambda raw: bytes(raw) in _ABSENT)
        self.keys = self._raw.keys()

    def value(self, name: str) -> Any:
        """
        A field's value. A number that can't be represented is an L{OutOfRange}.

        @raise RequestRejected: if it contains text that is not Unicode.
        """
        raw = bytes(self._raw[name])
        if self._mended and _HALF in raw:
            raise _not_json(self._body, ValueError())
        return _value(raw)

    def label(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """
        The value of a field that may contain text that is not Unicode, which is made Unicode.

        @return: the value, and what was wrong with it: phrases that continue from the field's name.
        """
        raw, rules = _ENCODED_HALF.sub(_HALF_TEMPLATE, bytes(self._raw[name])), []
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            raw = _as_utf8(raw)
            rules.append("is not UTF-8, and was read as Windows-1252")
        if _HALF in raw and (self._mended or raw != bytes(self._raw[name])):
            raw = raw.replace(_HALF, b"\\ufffd")
            rules.append("had half of a surrogate pair, which was replaced")
        try:
            return _value(raw), tuple(rules)
        except RequestRejected:
            # It is nested too deeply.
            return ..., tuple(rules)


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_Decoded]) -> tuple[_Decoded, bool]:
    """
    Decode a body. Halves of surrogate pairs, which msgspec doesn't accept, are replaced.

    @return: what was decoded, and whether something was replaced.

    @raise RequestRejected: if it is not a JSON object, or too long.
    """
    if len(body) > MAX_BODY_BYTES:
        raise _not_a_request(f"must have up to {MAX_BODY_BYTES} bytes, and has {len(body)}")
    try:
        return decoder.decode(body), False
    except (ValueError, RecursionError) as error:
        first = error
    mended = without_halves(body, _HALF_TEMPLATE)
    if mended != body:
        try:
            return decoder.decode(mended), True
        except (ValueError, RecursionError):
            pass
    raise _not_json(body, first) from None


def _value(raw: bytes) -> Any:
    try:
        return _value_decoder.decode(raw)
    except msgspec.ValidationError:
        # It is not a valid value of any field, and each will say so by its own rule.
        return OutOfRange(raw)
    except (ValueError, RecursionError) as error:
        raise _not_json(raw, error) from None


def without_halves(body: bytes, stand_in: bytes) -> bytes:
    """
    JSON in which something else stands for each escape sequence that is half of a surrogate pair.

    @param stand_in: that, as C{re} has templates.
    """
    if b"\0" in body:
        return body  # not JSON, whatever its escape sequences are
    hidden = body.replace(_ESCAPED_BACKSLASH, _HIDDEN_BACKSLASH)
    return _LONE_HALF.sub(stand_in, hidden).replace(_HIDDEN_BACKSLASH, _ESCAPED_BACKSLASH)


def _first_half(body: bytes) -> bytes | None:
    """The first escape sequence that is half of a surrogate pair."""
    found = _LONE_HALF.search(body.replace(_ESCAPED_BACKSLASH, _HIDDEN_BACKSLASH))
    return None if found is None else found[0]


def _as_utf8(text: bytes) -> bytes:
    """
    Text in UTF-8. What is not in it is read as Windows-1252; beyond L{_MOST_READ} pieces, which no text that
    a person wrote has, it is replaced.
    """
    parts: list[bytes] = []
    for _ in range(_MOST_READ):
        try:
            text.decode("utf-8")
            break
        except UnicodeDecodeError as error:
            found = _NOT_UTF8.match(text, error.start)
            assert found is not None
            read = codecs.charmap_decode(found[0], "strict", _WINDOWS_1252)[0]
            parts += [text[: error.start], read.encode()]
            text = text[found.end() :]
    return b"".join([*parts, text.decode("utf-8", "replace").encode()])


def _not_json(body: bytes, error: Exception) -> RequestRejected:
    for mark, name in _BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return _not_a_request(f"must be UTF-8 without a byte order mark, and begins with {name}")
    if isinstance(error, RecursionError):
        return _not_a_request("is nested too deeply")
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        return _not_a_request("must be UTF-8")
    if (half := _first_half(body)) is not None:
        # msgspec finds it, and calls it by other names.
        return _not_a_request(f"must be Unicode, and has half of a surrogate pair: {half.decode()}")
    return _not_a_request(f"must be a JSON object, but {_what_else(body.strip(_WHITE_SPACE), error)}")


def _what_else(text: bytes, error: Exception) -> str:
    """What a text is that is not a JSON object."""
    if not text:
        return "is empty"
    if isinstance(error, msgspec.ValidationError):
        return "is not an object"
    if not text.startswith(b"{"):
        return "is not JSON"
    if "truncated" in str(error):
        return "is incomplete"
    return f"is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}"


def _not_a_request(rule: str) -> RequestRejected:
    return RequestRejected([Problem(path="request", rule=rule)])
