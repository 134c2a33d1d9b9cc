"""The file of headers that a webhook sends, such as C{Authorization}."""

from __future__ import annotations

import re

import msgspec

from pcapsvc.core.mask import SHORT_SECRET
from pcapsvc.settings.files import BadLines, read_text
from pcapsvc.settings.secret import Secret

_MOST = 32
_LONGEST_VALUE = 4096
# RFC 9110, sections 5.1 and 5.5.
_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\x21-\x7e](?:[ \t\x21-\x7e]*[\x21-\x7e])?)")
#: The headers that are the webhook's own, or the connection's, in lower case.
RESERVED = frozenset(
    {
        "connection",
        "content-disposition",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: What the names of the webhook's own begin with.
OWN = "x-pcapsvc-"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """
    A header.

    @ivar value: a short one is no secret: it would be hidden wherever it occurs as a word.
    """

    name: str
    value: Secret | str

    @property
    def text(self) -> str:
        """The value itself."""
        return self.value.reveal() if isinstance(self.value, Secret) else self.value


def read_headers(path: str) -> tuple[Header, ...]:
    """
    The headers in a file: C{NAME: VALUE} on each line. Empty lines and those that begin with C{#} are
    skipped.

    @raise ValueError: if there is anything else; the message is a rule that continues from the path, and
        doesn't show what is in the file.
    """
    headers: list[Header] = []
    rules: list[str] = []
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or len(found[2]) > _LONGEST_VALUE:
            rules.append(f"must have NAME: VALUE in ASCII on each line, but line {number} is something else")
        elif found[1].lower() in RESERVED or found[1].lower().startswith(OWN):
            rules.append(f"must not have the header of line {number}, which is the daemon's own")
        elif any(found[1].lower() == header.name.lower() for header in headers):
            rules.append(f"must have each header once, but line {number} has one again")
        else:
            value = found[2] if len(found[2]) < SHORT_SECRET else Secret(found[2])
            headers.append(Header(name=found[1], value=value))
    if len(headers) > _MOST:
        rules.append(f"must have up to {_MOST} headers, but has {len(headers)}")
    if rules:
        raise BadLines(rules[:_MOST])
    return tuple(headers)
