"""Captures in a directory of this host."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import BinaryIO

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.kept_file import KeptFiles
from pcapsvc.core.no_options import WithoutOptions
from pcapsvc.core.result import Receipt
from pcapsvc.destinations.local.retention import Retention
from pcapsvc.durable import NO_LINKS, Shortcomings, read_chunks, sync_directory, try_out, write_file
from pcapsvc.interfaces.delivery import IReadableStore
from pcapsvc.interfaces.threads import RunInThread

#: The permissions of a capture: our group may read it.
MODE = 0o640

# Errors that somebody has to fix. All others are retryable: a full disk, a quota, an I/O error, a network
# file system that is unreachable.
_LASTING = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EEXIST,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)


@implementer(IReadableStore)
class LocalDirectory(WithoutOptions, Service):
    """
    Stores captures in a directory, completely or not at all. Each has a hidden name (C{.NAME.XXXXXXXX})
    until it is complete, which is left behind only if the process is killed. An existing file is never
    overwritten: if it has the size of the capture, an earlier attempt succeeded, as names are unique.

    A directory that is missing or not writable is an error that is not retryable: an operator has to fix it.
    A full disk is retryable.

    A file system that can't sync directories, or has no permissions, is good enough. When the service starts,
    what it doesn't support is logged, and whether captures can be stored at all.

    @param directory: an absolute path, as the daemon may change its working directory.
    @param retention: removes old captures; L{None} if all are kept.
    """

    name = "local"
    _log = Logger()

    def __init__(
        self, *, directory: str, run_in_thread: RunInThread, retention: Retention | None = None
    ) -> None:
        self._directory = directory
        self._run_in_thread = run_in_thread
        self._retention = retention
        self._shortcomings = Shortcomings()
        self._trying: Deferred[None] | None = None

    def startService(self) -> None:
        """Try the directory out."""
        super().startService()  # type: ignore[no-untyped-call]
        self._trying = Deferred.fromCoroutine(self._try_out())
        if self._retention is not None:
            self._retention.start()

    def stopService(self) -> None:
        """Wait no longer for the directory to be tried out, and remove nothing more."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._retention is not None:
            self._retention.stop()
        if self._trying is not None:
            self._trying.cancel()

    async def _try_out(self) -> None:
        try:
            await self._run_in_thread(_try_out, self._directory, self._shortcomings)
        except CancelledError:
            return
        except Exception as error:  # noqa: BLE001 - the captures' own errors say the same
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._log.warn(
                "captures can't be stored in {directory}: {reason}", directory=self._directory, reason=reason
            )
        self._log_shortcomings()

    def _log_shortcomings(self) -> None:
        for what in self._shortcomings.take_new():
            self._log.warn("the file system of {directory}: {what}", directory=self._directory, what=what)

    def path(self, location: str) -> str | None:
        """The path of a capture: see L{IReadableStore.path}."""
        if self._retention is not None and self._retention.is_removed(os.path.basename(location)):
            return None
        return location

    def kept(self) -> KeptFiles | None:
        """See L{IReadableStore.kept}."""
        return None if self._retention is None else self._retention.kept()

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is the file's path."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        cancelled = False
        path = os.path.join(self._directory, artifact.name)
        try:
            # Not in the thread: by the time it runs, the content may be closed.
            source = artifact.content.open()
            try:
                await self._run_in_thread(
                    _write_file,
                    self._directory,
                    artifact.name,
                    source,
                    lambda: cancelled,
                    self._shortcomings,
                    self._retention,
                )
            except CancelledError:
                # The thread notices, and closes the source.
                cancelled = True
                raise
            except BaseException:
                source.close()
                raise
        except CancelledError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise DestinationError(f"{path}: {reason}", retryable=error.errno not in _LASTING) from error
        except Exception as error:
            # Such as threads that have stopped.
            raise DestinationError(f"{path}: {error}", retryable=True) from error
        self._log_shortcomings()
        if self._retention is not None:
            self._retention.wake()
        return Receipt(destination=self.name, location=path)


def _try_out(directory: str, shortcomings: Shortcomings) -> None:
    path = os.path.join(directory, f".pcapsvc.{secrets.token_hex(4)}")
    try_out(path, mode=MODE, shortcomings=shortcomings)


def _write_file(
    directory: str,
    name: str,
    source: BinaryIO,
    cancelled: Callable[[], bool],
    shortcomings: Shortcomings,
    retention: Retention | None,
) -> None:
    with source:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            hidden = f".{name[:200]}.{secrets.token_hex(4)}"
            try:
                size = write_file(
                    hidden,
                    read_chunks(source, cancelled),
                    mode=MODE,
                    shortcomings=shortcomings,
                    directory=directory_fd,
                )
                made = _publish_noted(directory_fd, hidden, name, shortcomings, retention)
                if not made and not _has_size(directory_fd, name, size):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            finally:
                _remove(directory_fd, hidden)
        finally:
            os.close(directory_fd)


def _publish_noted(
    directory_fd: int, hidden: str, name: str, shortcomings: Shortcomings, retention: Retention | None
) -> bool:
    """Give a file its name, which is noted before that, so that it can be removed later. As L{_publish}."""
    found = os.stat(hidden, dir_fd=directory_fd, follow_symlinks=False)
    noted = None if retention is None else retention.record(directory_fd, name, found)
    made = False
    try:
        made = _publish(directory_fd, hidden, name, shortcomings)
    finally:
        if retention is not None and noted is not None:
            retention.settle(noted, made=made)
    return made


def _publish(directory_fd: int, hidden: str, name: str, shortcomings: Shortcomings) -> bool:
    """
    Give a file its name.

    @return: whether the name was free.
    """
    made = True
    try:
        # Unlike rename(2), link(2) never replaces a file.
        os.link(hidden, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except FileExistsError:
        made = False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        made = _rename(directory_fd, hidden, name)
    try:
        # Even if the name exists: the earlier attempt may not have come this far.
        sync_directory(directory_fd, shortcomings)
    except OSError:
        if made:
            # The attempt has failed. The next one must find the name free.
            _remove(directory_fd, name)
        raise
    return made


def _has_size(directory_fd: int, name: str, size: int) -> bool:
    """Whether it is a regular file of that many bytes, not a link."""
    found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _rename(directory_fd: int, hidden: str, name: str) -> bool:
    """
    Rename, for want of hard links. Names contain the capture's id, so nobody else creates this one between
    the two calls.

    @return: whether the name was free.
    """
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(hidden, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        return True
    return False


def _remove(directory_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory_fd)
    except OSError:
        pass
