"""Words of others, fit for a line of the log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

#: What a terminal, a log or a header might take for the end of the line, or for a turn of its direction:
#: control characters, separators of lines, and those of Unicode's bidirectional algorithm (UAX 9); as
#: ranges of a regular expression's set.
UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

# These, white space, and what UTF-8 has no bytes for.
_CONTROL = re.compile(rf"[{UNSAFE} \xa0\ud800-\udfff]+")


def one_line(text: str, *, most: int = 300, secrets: Iterable[tuple[str, str]] = ()) -> str:
    """
    A text on one line, without control characters.

    @param most: how many characters are kept; an ellipsis stands for the rest.
    @param secrets: see L{without_secrets}.
    """
    secrets = tuple(secrets)
    # Twice, as a secret may hold white space, and white space may be all that cuts one.
    text = without_secrets(_CONTROL.sub(" ", without_secrets(text, secrets)).strip(), secrets)
    return text if len(text) <= most else text[:most] + "…"


def without_secrets(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """
    A text without secrets, neither as they are nor as they are within a URL.

    @param secrets: each with what is to stand in its place.
    """
    for secret, instead in secrets:
        forms = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)} - {""}
        if forms:
            # The digits of a percent-encoding may be of either case; so the whole is.
            choice = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
            text = re.sub(choice, instead.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text
