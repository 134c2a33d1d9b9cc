"""Parts of a file, as HTTP asks for them (RFC 9110, section 14)."""

from __future__ import annotations

import re

_ONE_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII | re.IGNORECASE)
# A position of more digits is beyond the end of any file, and Python doesn't convert thousands of them.
_MOST_DIGITS = 18


class OutOfRange(Exception):
    """The file has nothing of what was asked for."""


def read_range(header: str, size: int) -> tuple[int, int] | None:
    """
    The part of a file that a C{Range} header asks for.

    @param size: the file's, in bytes.

    @return: where it begins and where it ends, in bytes; L{None} for the whole file, as if there were no such
        header: if it is malformed, or has another unit or several ranges.

    @raise OutOfRange: if it begins after the end.
    """
    match = _ONE_RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        # The last so many bytes.
        last = _position(match[2])
        if last == 0 or size == 0:
            raise OutOfRange
        return max(0, size - last), size
    first, end = _position(match[1]), _position(match[2]) + 1 if match[2] else size
    if end <= first and match[2]:
        return None
    if first >= size:
        raise OutOfRange
    return first, min(end, size)


def _position(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MOST_DIGITS else 10**_MOST_DIGITS


def matches(header: str, etag: str | None, *, strongly: bool = False) -> bool:
    """
    Whether a list of entity tags (RFC 9110, section 13.1) has one, or stands for any.

    @param etag: L{None} if there is no tag yet.
    @param strongly: whether a weak tag is another one than a strong one (RFC 9110, section 8.8.3.2).
    """
    given = [each.strip() for each in header.split(",")]
    return "*" in given or etag in given or (not strongly and f"W/{etag}" in given)
