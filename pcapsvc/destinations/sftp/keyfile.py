"""The file with the private key with which the daemon logs in."""

from __future__ import annotations

import os
import stat
from base64 import b64decode

from pcapsvc.core.errors import NO_ROOM

_MOST_BYTES = 64 * 1024
# PROTOCOL.key of OpenSSH: what a file in its own format begins with, and the cipher of one that has none.
_MAGIC, _NO_CIPHER = b"openssh-key-v1\0", b"\0\0\0\x04none"


class UnusableKey(ValueError):
    """
    A key that can't be used. The message is a rule that continues the path of its file.

    @ivar passes: whether that may pass by itself: if there was no room to read it.
    """

    def __init__(self, rule: str, *, passes: bool = False) -> None:
        super().__init__(rule)
        self.passes = passes


def read_key_file(path: str) -> bytes:
    """
    The content of the file. Blocks on the disk.

    @raise UnusableKey: if it can't be read, if others may read or change it, or if there is no private key.
    """
    try:
        # Opening a FIFO must not block (open(2)).
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(error) from None
    except ValueError:
        raise UnusableKey("must be a file that can be read (this is not a path)") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnusableKey("must be a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise UnusableKey("must belong to root or to the user of the daemon")
        if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise UnusableKey("must be accessible by its owner only, and perhaps readable by its group")
        content = os.read(descriptor, _MOST_BYTES)
    except OSError as error:
        raise _unreadable(error) from None
    finally:
        os.close(descriptor)
    if b"PRIVATE KEY-----" not in content:
        raise UnusableKey("must be a file with a private key, as ssh-keygen writes it")
    if b"-----BEGIN PRIVATE KEY-----" in content or b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content:
        raise UnusableKey("must not be in the format PKCS #8; 'ssh-keygen -p -f FILE' converts it")
    return content


def _unreadable(error: OSError) -> UnusableKey:
    return UnusableKey(f"must be a file that can be read ({error.strerror})", passes=error.errno in NO_ROOM)


def is_encrypted(content: bytes) -> bool:
    """Whether a private key has a passphrase, in the format of OpenSSH or in PEM."""
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" not in content:
        return b"ENCRYPTED" in content
    encoded = b"".join(line for line in content.split(b"\n") if not line.startswith(b"-----"))
    try:
        blob = b64decode(encoded)
    except ValueError:
        return False
    return blob.startswith(_MAGIC) and not blob[len(_MAGIC) :].startswith(_NO_CIPHER)
