"""
Hostile values for single fields: pieces of good values, and what is special to somebody, put together at
random.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random

#: How many values each field is given. C{make fuzz} gives each 100,000.
VALUES = int(os.environ.get("PCAPSVC_FUZZ_VALUES") or 2000)

#: What is special to a path, a URL, a header, a line, a shell, a template, JSON or TOML.
SPECIAL = (
    *("", " ", "\t", "\n", "\r\n", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "é", "😀"),
    *("/", "//", "\\", ".", "..", "../", "/..", "/.", "./", "~", "$HOME", "%2e%2e", "%2f", "%00", "%", "%zz"),
    *("{", "}", "{{", "}}", "{}", "{x}", "{0}", "{node!r}", "{node.x}", "{node}", "{interface}", "{id}"),
    *(
        ":",
        "::",
        "@",
        "#",
        "?",
        "&",
        "=",
        ";",
        ",",
        "*",
        "*.",
        "'",
        '"',
        "<",
        ">",
        "|",
        "`",
        "[",
        "]",
        "(",
        ")",
    ),
    *("-", "--", "_", "+", "0", "00", "1", "-1", "1e9", "65536", "9223372036854775808", "a" * 64, "a" * 600),
    *("true", "null", "none", "None", "NaN", "inf", "٣"),
)


def some_value(random: Random, good: Sequence[str], pieces: Sequence[str] = ()) -> str:
    """
    Something between a good value and noise.

    @param good: values that are accepted.
    @param pieces: of the language of this field, beside those of L{SPECIAL}.
    """
    text = random.choice(good) if random.random() < 0.7 else ""
    for _ in range(random.choice((0, 1, 1, 1, 2, 4, 8))):
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.choice((0, 0, 1, 4)))
        words = pieces if pieces and random.random() < 0.5 else SPECIAL
        text = text[:start] + random.choice(words) + text[end:]
    return text * 20 if random.random() < 0.001 else text
