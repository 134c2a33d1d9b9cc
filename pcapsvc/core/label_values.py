"""
Labels of a request as they can be used. They only describe a capture, and don't decide what is captured: so
none is a reason to reject a request. What can't be used as it is, is changed or left out, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pcapsvc.core.body import OutOfRange
from pcapsvc.core.errors import Problem, shown
from pcapsvc.core.text import UNSAFE

#: The fields that are labels, each with the most characters that it may have.
LABEL_CHARACTERS = {"requestid": 128, "tags": 1024, "customer": 1024, "alertid": 255, "alertstr": 255}

_UNSAFE = re.compile(rf"[{UNSAFE}]+")
_MAY_BE_NUMBERS = frozenset({"alertid", "alertstr"})


def usable_label(name: str, value: Any, wrong: Iterable[str] = ()) -> tuple[int | str | None, list[Problem]]:
    """
    A label's value as it can be used.

    @param value: as it is in the message.
    @param wrong: what was wrong with its text already.

    @return: the value, L{None} if it can't be used; and a warning for each change.
    """
    rules = list(wrong)
    usable = _text_or_number(name, value, rules)
    if isinstance(usable, str):
        usable = _one_line(name, usable, rules) or None
    return usable, [Problem(path=name, value=shown(value), rule=rule) for rule in rules]


def _text_or_number(name: str, value: Any, rules: list[str]) -> int | str | None:
    match value:
        case None | str():
            return value
        case bool():
            pass
        case int() if name in _MAY_BE_NUMBERS and -(2**63) <= value < 2**63:
            return value
        case int() | float():
            rules.append("should be text; the number was made text")
            return str(value)
        case OutOfRange():
            rules.append("should be text; the number was made text")
            return value.text
        case list() if value and {*map(type, value)} <= {str, int}:
            # That many items are longer than the label may be, by their commas alone.
            most = LABEL_CHARACTERS[name] + 2
            what = "the list was" if len(value) <= most else f"the first {most} items of the list were"
            rules.append(f"should be text; {what} joined by commas")
            return ",".join(map(str, value[:most]))
    rules.append("should be text; it was left out")
    return None


def _one_line(name: str, text: str, rules: list[str]) -> str:
    clean = _UNSAFE.sub(" ", text).strip() if _UNSAFE.search(text) else text
    if clean != text:
        rules.append("should be one line; line breaks and control characters were replaced by spaces")
    most = LABEL_CHARACTERS[name]
    if len(clean) > most:
        rules.append(f"should be at most {most} characters long; the rest of {len(clean)} was cut off")
        clean = clean[:most]
        if name == "tags" and "," in clean:
            # Half of a tag would be another tag.
            clean = clean[: clean.rindex(",")]
    return clean
