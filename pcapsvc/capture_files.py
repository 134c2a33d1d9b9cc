"""
The files of captures, as long as they are in memory: while a capture runs, while it is delivered, and for a
while after that, so that they can be fetched.

Whoever reads a file doesn't keep it in memory by that. It may be freed at any time after the capture's last
delivery, of which readers are told. So memory is never held for a reader that is slow: only for a minute,
unless captures need it sooner.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

from twisted.application.service import Service
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.admission import NoRoom
from pcapsvc.core.artifact import PCAP_SUFFIX, file_name
from pcapsvc.core.recording import Content
from pcapsvc.interfaces.capture import ICapture, ISnapshot
from pcapsvc.interfaces.captures import ICaptureFiles
from pcapsvc.interfaces.threads import RunInThread

#: How many files are kept after their last delivery. Each has a descriptor.
MOST_FILES = 200

#: How long a file that is being read is kept in spite of the limits, unless captures need the memory, in
#: seconds.
GRACE_SECONDS = 60.0


class FileFreed(Exception):
    """A file is not in memory any more, or can't be read."""


class CopyRefused(Exception):
    """There is no room for a copy of a file."""


class CaptureFile:
    """
    The pcap file of a capture.

    @ivar key: the capture's id; of a copy, another one.
    @ivar name: the name of the file.
    """

    _log = Logger()

    def __init__(
        self,
        key: str,
        name: str,
        files: CaptureFiles,
        *,
        capture: ICapture | None = None,
        content: Content | None = None,
    ) -> None:
        self.key = key
        self.name = name
        self._files = files
        self._capture = capture
        self._content = content
        # Asked for once: it is a system call, and is compared with those of hundreds of others.
        self._size = 0 if content is None else content.size
        self._reader: BinaryIO | None = None
        self._watchers: dict[object, Callable[[], object]] = {}
        # By when a file that is being read has to make room; None if it needn't.
        self.free_by: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether the file still grows."""
        return self._capture is not None

    @property
    def is_rolling(self) -> bool:
        """Whether it is that of a rolling capture that is running: then only copies of it can be read."""
        return self._capture is not None and self._capture.plan.limits.is_rolling

    def snapshot(self) -> ISnapshot:
        """
        What a rolling capture holds now: see L{ICapture.snapshot}.

        @raise FileFreed: if it has ended.
        """
        if self._capture is None:
            raise FileFreed
        return self._capture.snapshot()

    @property
    def is_watched(self) -> bool:
        """Whether somebody reads it."""
        return bool(self._watchers)

    def whole_bytes(self) -> int:
        """
        The size of the file, in bytes. While it grows, up to a whole packet.

        @raise FileFreed: if it is not in memory any more.
        """
        if self._capture is not None:
            return self._capture.whole_bytes()
        if self._content is None:
            raise FileFreed
        return self._size

    def read_at(self, offset: int, count: int) -> bytes:
        """
        Read the file.

        @param count: how many bytes, at most. There may be fewer, but none only at the end.

        @raise FileFreed: if it is not in memory any more.
        """
        if self._capture is not None:
            return self._capture.read_at(offset, count)
        if self._content is None:
            raise FileFreed
        try:
            if self._reader is None:
                self._reader = self._content.open()
            self._reader.seek(offset)
            return self._reader.read(count)
        except OSError as error:
            raise FileFreed from error

    def watch(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Read the file from now on: C{callback} is called when it has its full size, and when it is freed.

        @return: a function that ends this. Further calls of it do nothing.
        """
        key = object()
        self._watchers[key] = callback

        def unsubscribe() -> None:
            if self._watchers.pop(key, None) is not None and not self._watchers:
                self._files.unwatched(self)

        return unsubscribe

    def end(self, content: Content) -> None:
        """The capture has ended with this file, which is owned from here on."""
        self._capture, self._content, self._size = None, content, content.size
        self._tell()

    def free(self) -> None:
        """Free the memory. A second call does nothing."""
        (reader, self._reader), (content, self._content) = (self._reader, None), (self._content, None)
        self._capture = None
        if reader is not None:
            reader.close()
        if content is not None:
            content.close()
        self._tell()

    def _tell(self) -> None:
        for key, callback in list(self._watchers.items()):
            if key not in self._watchers:
                continue  # another one has ended it
            try:
                callback()
            except Exception:  # noqa: BLE001 - a reader must not change what happens to captures
                self._log.failure("a reader of a capture failed")


def _copied(snapshot: ISnapshot) -> Content:
    """A copy of what a capture held, made in a thread. If that is given up, it still goes on there."""
    try:
        return snapshot.copy()
    finally:
        snapshot.close()


class _Shared:
    """A file that its owner closes, while others may go on reading it: a L{Content}."""

    def __init__(self, content: Content, close: Callable[[], None]) -> None:
        self._content = content
        self._close: Callable[[], None] | None = close
        self.size = content.size

    def open(self) -> BinaryIO:
        """A reader: see L{Content.open}."""
        return self._content.open()

    def close(self) -> None:
        """Need it no longer: see L{Content.close}."""
        close, self._close = self._close, None
        if close is not None:
            close()


@implementer(ICaptureFiles)
class CaptureFiles(Service):
    """
    See L{ICaptureFiles}. What is kept after its last delivery is a
    L{Spare<pcapsvc.core.admission.Spare>} for captures.

    @param reactor: provides time.
    @param max_bytes: how much is kept after the last delivery. The oldest make room.
    """

    def __init__(self, reactor: Any, max_bytes: int = 0) -> None:
        self._reactor = reactor
        self._max_bytes = max_bytes
        # Those of captures that run, or are being delivered.
        self._needed: dict[str, CaptureFile] = {}
        # The others, the oldest first; and copies, by keys of their own. How many are being made.
        self._kept: OrderedDict[str, CaptureFile] = OrderedDict()
        self._copies: set[str] = set()
        self._copying = 0
        self._numbers = itertools.count()
        self._refuse: Callable[[int], NoRoom | None] = lambda size: None
        self.held_bytes = 0
        self._timer: Any = None

    def retain(self, max_bytes: int) -> None:
        """From here on, keep files of up to this many bytes in all, as somebody may fetch them."""
        self._max_bytes = max_bytes

    def ask(self, refuse: Callable[[int], NoRoom | None]) -> None:
        """From here on, ask for room before a file is copied: see L{Admission.refuse_spare}."""
        self._refuse = refuse

    @property
    def held_files(self) -> int:
        """How many files are kept after their last delivery."""
        return len(self._kept) + self._copying

    def stopService(self) -> None:
        """Free what is kept."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.reclaim(least_files=self.held_files)

    def find(self, capture_id: str) -> CaptureFile | None:
        """The file of a capture; L{None} if it is not in memory."""
        return self._needed.get(capture_id) or self._kept.get(capture_id)

    def begin(self, capture: ICapture) -> None:
        """See L{ICaptureFiles.begin}."""
        name = file_name(capture.plan, capture.started, capture.capture_id, PCAP_SUFFIX)
        self._needed[capture.capture_id] = CaptureFile(capture.capture_id, name, self, capture=capture)

    def end(self, capture_id: str, content: Content) -> Content:
        """See L{ICaptureFiles.end}."""
        self._needed[capture_id].end(content)
        return _Shared(content, lambda: self._release(capture_id))

    def fail(self, capture_id: str) -> None:
        """See L{ICaptureFiles.fail}."""
        self._needed.pop(capture_id).free()

    async def copy(
        self, file: CaptureFile, run_in_thread: RunInThread
    ) -> tuple[CaptureFile, Callable[[], None]]:
        """
        Copy what a rolling capture holds now. The copy is spare like what is kept after its last delivery,
        and is freed when nobody watches it any more.

        @param run_in_thread: copies it.

        @return: the copy, which is being watched; and a function that ends that.

        @raise FileFreed: if the capture has ended.
        @raise CopyRefused: if there is no room for it.
        """
        try:
            snapshot = file.snapshot()
        except OSError as error:
            raise CopyRefused(str(error)) from None
        if (refused := self._refuse(snapshot.size)) is not None:
            snapshot.close()
            raise CopyRefused(refused.reason)
        self.held_bytes += snapshot.size
        self._copying += 1
        try:
            content = await run_in_thread(_copied, snapshot)
        except CancelledError:
            raise CopyRefused("the daemon is stopping") from None
        except (OSError, RuntimeError) as error:
            # Perhaps because no thread runs any more.
            snapshot.close()
            raise CopyRefused(str(error)) from None
        finally:
            self.held_bytes -= snapshot.size
            self._copying -= 1
        return self._keep_copy(f"{file.key}/{next(self._numbers)}", file.name, content)

    def _keep_copy(self, key: str, name: str, content: Content) -> tuple[CaptureFile, Callable[[], None]]:
        if not self.running:
            content.close()
            raise CopyRefused("the daemon is stopping")
        copy = self._kept[key] = CaptureFile(key, name, self, content=content)
        self._copies.add(key)
        self.held_bytes += content.size
        release = copy.watch(lambda: None)
        self.trim()
        return copy, release

    def unwatched(self, file: CaptureFile) -> None:
        """Nobody reads a file any more."""
        if file.key in self._copies:
            self._free(file)
        self.trim()

    def reclaim(self, *, least_bytes: int = 0, least_files: int = 0, even_watched: bool = True) -> None:
        """Free what captures need: see L{Spare<pcapsvc.core.admission.Spare>}. What is read comes last."""
        bytes_left, files_left = self.held_bytes - least_bytes, self.held_files - least_files
        for file in sorted(self._kept.values(), key=lambda file: file.is_watched):
            if self.held_bytes <= max(0, bytes_left) and self.held_files <= max(0, files_left):
                break
            if even_watched or not file.is_watched:
                self._free(file)
        self._schedule()

    def trim(self) -> None:
        """Free what is too much, the oldest first. What is being read has some time left."""
        now = self._reactor.seconds()
        more_bytes, more_files = self.held_bytes - self._max_bytes, self.held_files - MOST_FILES
        # What is too large by itself doesn't drive out the others.
        for file in sorted(self._kept.values(), key=lambda file: file.whole_bytes() <= self._max_bytes):
            if more_bytes <= 0 and more_files <= 0:
                file.free_by = None
                continue
            more_bytes, more_files = more_bytes - file.whole_bytes(), more_files - 1
            if file.free_by is None:
                file.free_by = now + GRACE_SECONDS
            if not file.is_watched or file.free_by <= now:
                self._free(file)
        self._schedule()

    def _release(self, capture_id: str) -> None:
        file = self._needed.pop(capture_id)
        self._kept[capture_id] = file
        self.held_bytes += file.whole_bytes()
        if self.running:
            self.trim()
        else:
            self._free(file)

    def _free(self, file: CaptureFile) -> None:
        self.held_bytes -= file.whole_bytes()
        del self._kept[file.key]
        self._copies.discard(file.key)
        file.free()

    def _schedule(self) -> None:
        """Come back when the time of the next file that is being read is up."""
        due = min((file.free_by for file in self._kept.values() if file.free_by is not None), default=None)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if due is not None:
            self._timer = self._reactor.callLater(max(0.0, due - self._reactor.seconds()), self.trim)
