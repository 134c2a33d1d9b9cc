"""
A file to a server, over SFTP (draft-ietf-secsh-filexfer-02, which OpenSSH implements): written under a
temporary name, checked, and renamed.
"""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import posixpath
import stat
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from twisted.conch.ssh.common import NS
from twisted.conch.ssh.filetransfer import (
    FX_BAD_MESSAGE,
    FX_FAILURE,
    FX_NO_SUCH_FILE,
    FX_OP_UNSUPPORTED,
    FX_PERMISSION_DENIED,
    FXF_CREAT,
    FXF_EXCL,
    FXF_WRITE,
    SFTPError,
)
from twisted.internet.defer import Deferred

from pcapsvc.core.errors import DestinationError
from pcapsvc.core.text import one_line
from pcapsvc.destinations.sftp.ssh import Client

#: How much is in one request: with its header, it fits into one packet of OpenSSH's (32 KiB).
WRITE_BYTES = 32_000
#: How many requests are under way at once. 512 KB fill a connection of 40 Mbit/s with a round trip of 100 ms.
MOST_WRITES = 16
#: The permissions of a capture, as far as the server's umask lets them.
MODE = 0o640

_FSYNC, _POSIX_RENAME = b"fsync@openssh.com", b"posix-rename@openssh.com"
# Errors that somebody has to fix. A full disk and a quota are a "failure", like much else.
_LASTING = frozenset({FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, FX_BAD_MESSAGE, FX_OP_UNSUPPORTED})
_WORDS = {
    FX_NO_SUCH_FILE: "no such file or directory",
    FX_PERMISSION_DENIED: "permission denied",
    FX_BAD_MESSAGE: "invalid argument, such as a name that is too long",
    FX_FAILURE: "failure (a full disk, a quota, or another error there)",
    FX_OP_UNSUPPORTED: "the server does not support this",
}


class Transfer:
    """
    The transfer of one file.

    @param directory: where it is to be, absolute, or relative to that of the login; empty is that one.
    @param name: its name.
    @param size: in bytes.
    """

    def __init__(self, client: Client, *, directory: str, name: str, size: int) -> None:
        self._client = client
        self._directory = directory
        self._target = posixpath.join(directory, name)
        self._part = posixpath.join(directory, f".{name}.part")
        self._size = size

    async def is_there(self) -> bool:
        """
        Whether the file is there, of the right size, from an earlier attempt.

        @raise DestinationError: if there is something else of its name.
        """
        try:
            found = await self._client.getAttrs(self._target.encode())
        except SFTPError as error:
            if error.code == FX_NO_SUCH_FILE:
                return False
            raise _failed(error, f"can't look for {self._target}") from None
        if stat.S_ISREG(found.get("permissions", stat.S_IFREG)) and found.get("size") == self._size:
            return True
        raise DestinationError(f"{self._target} exists, and is something else", retryable=False)

    async def store(self, chunks: AsyncIterator[bytes]) -> None:
        """
        Write the file, and give it its name.

        @raise DestinationError: if something goes wrong. What was written is removed, if the server lets us.
        """
        file = await self._create()
        try:
            await self._write(file, chunks)
            await self._finish(file)
            await self._rename()
        except DestinationError:
            # The server still answers.
            await self._discard()
            raise

    async def _create(self) -> Any:
        """The temporary file. What an earlier attempt has left of it is removed, and nothing is followed."""
        try:
            await self._client.removeFile(self._part.encode())
        except SFTPError as error:
            # It mostly isn't there; everything else is seen when it is created.
            if error.code == FX_NO_SUCH_FILE:
                await self._make_directories()
        flags = FXF_WRITE | FXF_CREAT | FXF_EXCL
        try:
            return await self._client.openFile(self._part.encode(), flags, {"permissions": MODE})
        except SFTPError as error:
            raise _failed(error, f"can't create {self._part}") from None

    async def _make_directories(self) -> None:
        """Make those that are missing."""
        missing = []
        path = self._directory
        while path not in ("", "/") and not await self._exists(path):
            missing.append(path)
            path = posixpath.dirname(path)
        for path in reversed(missing):
            try:
                await self._client.makeDirectory(path.encode(), {})
            except SFTPError as error:
                # Another attempt may have made it.
                if not await self._exists(path):
                    raise _failed(error, f"can't make the directory {path}") from None

    async def _exists(self, path: str) -> bool:
        try:
            await self._client.getAttrs(path.encode(), followLinks=1)
        except SFTPError as error:
            if error.code == FX_NO_SUCH_FILE:
                return False
            raise _failed(error, f"can't look for {path}") from None
        return True

    async def _write(self, file: Any, chunks: AsyncIterator[bytes]) -> None:
        under_way: deque[Deferred[None]] = deque()
        offset = 0
        try:
            async for chunk in chunks:
                for at in range(0, len(chunk), WRITE_BYTES):
                    data = chunk[at : at + WRITE_BYTES]
                    under_way.append(file.writeChunk(offset, data))
                    offset += len(data)
                    if len(under_way) == MOST_WRITES:
                        await under_way.popleft()
            while under_way:
                await under_way.popleft()
        except SFTPError as error:
            raise _failed(error, f"can't write {self._part}") from None
        finally:
            for each in under_way:
                each.addErrback(lambda _: None)
        if offset != self._size:
            raise DestinationError(f"only {offset} of {self._size} bytes could be read", retryable=True)

    async def _finish(self, file: Any) -> None:
        """Have it written to the disk, if the server can, and make sure that all of it is there."""
        try:
            if _FSYNC in self._client.extensions:
                await self._sync(file)
            found = await file.getAttrs()
            await file.close()
        except SFTPError as error:
            raise _failed(error, f"can't complete {self._part}") from None
        if found.get("size") != self._size:
            words = f"{self._part} has {found.get('size')} bytes there, instead of {self._size}"
            raise DestinationError(words, retryable=True)

    async def _sync(self, file: Any) -> None:
        try:
            await self._client.extendedRequest(_FSYNC, file.handle)
        except SFTPError as error:
            # Its file system can't (EINVAL, ENOSYS).
            if error.code not in (FX_BAD_MESSAGE, FX_OP_UNSUPPORTED):
                raise

    async def _rename(self) -> None:
        """Give it its name, unless there is a file of this name."""
        old, new = self._part.encode(), self._target.encode()
        try:
            # OpenSSH makes a link, and so never replaces a file.
            await self._client.renameFile(old, new)
            return
        except SFTPError as error:
            problem = error
        if await self.is_there():
            # From an earlier attempt that went on longer than we knew.
            await self._discard()
            return
        if _POSIX_RENAME not in self._client.extensions:
            raise _failed(problem, f"can't rename {self._part}")
        try:
            # Its file system may have no links.
            await self._client.extendedRequest(_POSIX_RENAME, NS(old) + NS(new))
        except SFTPError as error:
            raise _failed(error, f"can't rename {self._part}") from None

    async def _discard(self) -> None:
        """Remove the temporary file, as far as that is possible."""
        try:
            await self._client.removeFile(self._part.encode())
        except SFTPError:
            pass  # the next attempt tries again


def _failed(error: SFTPError, what: str) -> DestinationError:
    words = _WORDS.get(error.code) or one_line(error.message, most=100) or f"error {error.code}"
    return DestinationError(f"{what}: {words}", retryable=error.code not in _LASTING)
