"""The public keys by which a server is recognized, without a library: the settings need them as well."""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode, b64encode
from itertools import pairwise

import msgspec

#: The types of keys (RFC 4253, section 6.6; RFC 5656; RFC 8709), each with its signatures, the best first.
#: SHA-1 is not for signatures any longer (RFC 8332).
SIGNATURES = {
    "ssh-ed25519": (b"ssh-ed25519",),
    "ecdsa-sha2-nistp256": (b"ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": (b"ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": (b"ecdsa-sha2-nistp521",),
    "ssh-rsa": (b"rsa-sha2-512", b"rsa-sha2-256"),
}
# How many parts each has, its type included.
_PARTS = {"ssh-ed25519": 2, "ecdsa": 3, "ssh-rsa": 3}
_TYPES = ", ".join(SIGNATURES)


class HostKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    A public key.

    @ivar kind: its type, one of L{SIGNATURES}.
    @ivar blob: as it is sent (RFC 4253, section 6.6).
    """

    kind: str
    blob: bytes

    def __str__(self) -> str:
        return f"{self.kind} {fingerprint(self.blob)}"


def parse_host_key(line: str) -> HostKey:
    """
    The key in a line, as C{ssh-keyscan} prints it, or as it is in a file C{.pub}: perhaps a host name, its
    type, the key in base64, perhaps a comment.

    @raise ValueError: if there is none; the message is a rule.
    """
    words = line.split()
    for kind, encoded in pairwise(words):
        if kind not in SIGNATURES:
            continue
        try:
            blob = b64decode(encoded, validate=True)
        except ValueError:
            blob = b""
        if kind_of(blob) != kind or _parts(blob) != _PARTS[kind.partition("-sha2-")[0]]:
            raise ValueError(f"has a key that is broken, or is not of the type {kind}")
        return HostKey(kind=kind, blob=blob)
    raise ValueError(f"must be a public key of the server, such as 'ssh-ed25519 AAAA…' (one of {_TYPES})")


def _parts(blob: bytes) -> int | None:
    """How many parts a key has; L{None} if it is not a whole number of them (RFC 4251, section 5)."""
    count = 0
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length or length == 0:
            return None
        blob, count = blob[4 + length :], count + 1
    return count


def kind_of(blob: bytes) -> str | None:
    """The type of a key; L{None} if it isn't known."""
    if len(blob) < 4:
        return None
    (length,) = struct.unpack(">L", blob[:4])
    name = blob[4 : 4 + length].decode("ascii", "replace")
    return name if name in SIGNATURES else None


def fingerprint(blob: bytes) -> str:
    """The fingerprint of a key, as C{ssh-keygen -l} prints it."""
    return f"SHA256:{b64encode(hashlib.sha256(blob).digest()).decode().rstrip('=')}"
