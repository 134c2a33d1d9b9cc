"""Texts as values of HTTP headers, such as tags."""

from __future__ import annotations

import re

#: The longest text, in characters: the lines that servers accept have 8 KB or so.
LONGEST_TEXT = 2044

# What is not printable ASCII, the percent sign, and spaces at the ends.
_UNSAFE = re.compile(r"[^\x20-\x24\x26-\x7e]|\A +| +\Z")


def header_text(text: str, *, most: int = LONGEST_TEXT) -> str:
    """
    A text as printable ASCII: anything else, and the percent sign, is percent-encoded as UTF-8. If the result
    is longer than C{most}, it is cut at a comma.
    """
    safe = _UNSAFE.sub(lambda found: _percent_encoded(found[0]), text)
    if len(safe) <= most:
        return safe
    comma = safe.rfind(",", 0, most + 1)
    if comma >= 0:
        return safe[:comma]
    # Not within an encoded byte.
    return re.sub(r"%.?\Z", "", safe[:most])


def _percent_encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))
