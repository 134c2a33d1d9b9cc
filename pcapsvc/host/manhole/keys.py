"""
The two files of the manhole: the host's own key, and the keys that may log in.

Both are judged as OpenSSH judges them: by their owner and mode, before their content.
"""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.conch.ssh.keys import FingerprintFormats, Key

from pcapsvc.core.text import one_line
from pcapsvc.durable import NO_LINKS, Shortcomings, sync_directory

_MAX_BYTES = 1024 * 1024
_MAX_KEYS = 1000
_MAX_COMMENT_CHARACTERS = 80

# NIST SP 800-131A: shorter ones are disallowed. OpenSSH itself refuses less than 1024.
_MIN_RSA_BITS = 2048

#: The types of key that may log in (as the first word of a line in authorized_keys, sshd(8)).
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)

# Options, perhaps with values in double quotes, before a key (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
_OPTIONS = re.compile(
    r'(?:[A-Za-z0-9-]+(?:="(?:[^"\\]|\\.)*")?)(?:,[A-Za-z0-9-]+(?:="(?:[^"\\]|\\.)*")?)*\s+'
)


class AuthorizedKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    A key that may log in.

    @ivar blob: the public key, in the form in which clients send it (RFC 4253, section 6.6).
    @ivar fingerprint: as C{ssh-keygen -l} prints it: C{SHA256:…}.
    @ivar comment: what stands behind the key, on one line; usually whose it is.
    """

    blob: bytes
    fingerprint: str
    comment: str

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.comment})" if self.comment else self.fingerprint


class AuthorizedKeys(msgspec.Struct, frozen=True, kw_only=True):
    """
    What an authorized_keys file holds.

    @ivar keys: by their blob.
    @ivar problems: the lines that give no key, and why: C{line 3 has options…}.
    """

    keys: dict[bytes, AuthorizedKey] = msgspec.field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_authorized_keys(path: str) -> AuthorizedKeys:
    """
    Read an authorized_keys file (sshd(8)). Blocks on the disk.

    @raise ValueError: if the file can't be read, or others may write it; the message is a
        rule that follows the path: C{must be…}.
    """
    text = _read(path, forbidden=stat.S_IWGRP | stat.S_IWOTH, rule="must not be writable by group or others")
    keys: dict[bytes, AuthorizedKey] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(keys) == _MAX_KEYS:
            problems.append(f"has more than {_MAX_KEYS} keys")
            break
        try:
            key = _authorized_key(line.strip())
        except ValueError as error:
            problems.append(f"line {number} {error}")
        else:
            keys[key.blob] = key
    return AuthorizedKeys(keys=keys, problems=tuple(problems))


def authorized_keys_problems(path: str) -> Iterator[str]:
    """What is wrong with an authorized_keys file, as rules that follow its path."""
    try:
        found = read_authorized_keys(path)
    except ValueError as error:
        yield str(error)
        return
    for problem in found.problems:
        yield f"must be an authorized_keys file, and {problem}"
    if not found.keys and not found.problems:
        yield "must be an authorized_keys file, and it holds no key"


def host_key_problems(path: str) -> Iterator[str]:
    """What is wrong with the host key's file, or with creating it, as rules that follow its path."""
    if os.path.lexists(path):
        try:
            _read_host_key(path)
        except ValueError as error:
            yield str(error)
        return
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        yield "must be in a directory that exists: the key is created on the first start"
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield "must be in a directory that this user can write: the key is created on the first start"


def load_host_key(path: str) -> tuple[Any, bool]:
    """
    The host's own key. If there is no file, a new key (Ed25519) is written there first, for
    its owner only (0600). Blocks on the disk.

    @return: a L{Key}, and whether it is new.

    @raise ValueError: if there is neither a usable key nor a way to write one; the message
        is a rule that follows the path.
    """
    created = False
    if not os.path.lexists(path):
        try:
            created = _create(path)
        except OSError as error:
            raise ValueError(f"must be a file that can be created ({error.strerror})") from None
    return _read_host_key(path), created


def fingerprint(key: Any) -> str:
    """The fingerprint of a L{Key}, as C{ssh-keygen -l} prints it."""
    digest: str = key.public().fingerprint(FingerprintFormats.SHA256_BASE64)
    return f"SHA256:{digest.rstrip('=')}"


def _authorized_key(line: str) -> AuthorizedKey:
    words = line.split(None, 2)
    if words[0] not in KEY_TYPES:
        if words[0] in ("ssh-dss", "ssh-dsa"):
            raise ValueError("has a DSA key, which is too weak")
        options = _OPTIONS.match(line)
        if options is not None and line[options.end() :].split(None, 1)[:1] != []:
            rest = line[options.end() :].split(None, 1)[0]
            if rest in KEY_TYPES:
                raise ValueError("has options in front of the key, which are not supported")
        raise ValueError(f"does not begin with a type of key that is supported ({', '.join(KEY_TYPES)})")
    try:
        key = Key.fromString(f"{words[0]} {words[1]}".encode(), type="public_openssh")
        is_of_type = key.sshType().decode() == words[0]
    except Exception:  # noqa: BLE001 - Conch and cryptography raise many things at a broken key
        raise ValueError("has a key that is broken") from None
    if not is_of_type:
        raise ValueError("has a key that is of another type than it says")
    if words[0] == "ssh-rsa" and key.size() < _MIN_RSA_BITS:
        raise ValueError(f"has an RSA key of less than {_MIN_RSA_BITS} bits, which is too weak")
    comment = one_line(words[2], most=_MAX_COMMENT_CHARACTERS) if len(words) > 2 else ""
    return AuthorizedKey(blob=key.blob(), fingerprint=fingerprint(key), comment=comment)


def _read_host_key(path: str) -> Any:
    text = _read(
        path,
        forbidden=stat.S_IRWXG | stat.S_IRWXO,
        rule="must not be accessible by group or others (mode 0600)",
    )
    try:
        key = Key.fromString(text.encode())
    except Exception:  # noqa: BLE001 - Conch and cryptography raise many things at a broken key
        raise ValueError("must be a private key in OpenSSH format, without a passphrase") from None
    if key.isPublic():
        raise ValueError("must be a private key in OpenSSH format, and it is a public one")
    if key.sshType() == b"ssh-dss" or (key.type() == "RSA" and key.size() < _MIN_RSA_BITS):
        raise ValueError("must be a stronger key: Ed25519, ECDSA, or RSA of 2048 bits or more")
    return key


def _read(path: str, *, forbidden: int, rule: str) -> str:
    """The text of a file that is ours or root's, and none of whose forbidden bits of the mode is set."""
    try:
        # A FIFO would be waited for otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"must be a file that can be read ({error.strerror})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("must be a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError("must belong to the user of the daemon, or to root")
        if status.st_mode & forbidden:
            raise ValueError(f"{rule}, and its mode is {stat.S_IMODE(status.st_mode):04o}")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"must be a file that can be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"must be a file of at most {_MAX_BYTES} bytes")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


def _create(path: str) -> bool:
    """
    Write a new key. It is there whole or not at all, and a key that is there already is never
    replaced: clients remember it.
    """
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    directory = os.path.dirname(os.path.abspath(path))
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not _named(temporary, path):
            return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    # If that is not supported, a crash right now may lose the key, and the next start makes another.
    sync_directory(directory, Shortcomings())
    return True


def _named(temporary: str, path: str) -> bool:
    """Give a file its name, if that is free. Return whether it was."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
    return True
