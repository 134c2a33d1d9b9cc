"""
C{/captures/ID/pcap}: the packets of a capture, from memory, the local directory or the spool.

In memory is the recording, a pcap file. On a disk is what was delivered: perhaps in another format, perhaps
compressed. It is sent as it is, so that its size is known, and parts of it can be sent.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from twisted.web.iweb import IBodyProducer

from pcapsvc.capture_files import CaptureFile, CaptureFiles, CopyRefused, FileFreed
from pcapsvc.core.artifact import PCAP_MEDIA_TYPE
from pcapsvc.core.byte_range import OutOfRange, matches, read_range
from pcapsvc.core.spool_entry import SpoolEntry
from pcapsvc.interfaces.captures import ICaptures
from pcapsvc.interfaces.delivery import IReadableStore
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.http_problems import busy
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource
from pcapsvc.web.file_streams import CopyStream, DiskFile, DiskStream, MemoryStream
from pcapsvc.web.query import Parameters

#: After how many seconds to try again, if there is no room for a copy.
RETRY_AFTER_SECONDS = 5


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """
    A file on a disk, as it was delivered.

    @ivar size: in bytes. If it has another one, it was changed by somebody.
    """

    path: str
    name: str
    size: int
    media_type: str

    def form(self, capture_id: str) -> str:
        """What it is, by the end of its name; nothing if it is the recording itself."""
        return "" if self.media_type == PCAP_MEDIA_TYPE else self.name.rpartition(capture_id)[2]


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where files of captures can be.

    @ivar files: in memory.
    @ivar in_spool: finds a capture's entry in the spool by its id, and the path of its file; L{None} if there
        is no spool.
    @ivar run_in_thread: reads what is on a disk.
    @ivar copy_in_thread: copies what is in memory.
    @ivar stores: the destinations whose captures can be read here, by name.
    """

    reactor: Any
    captures: ICaptures
    files: CaptureFiles
    in_spool: Callable[[str], Awaitable[tuple[SpoolEntry, str] | None]] | None
    run_in_thread: RunInThread
    copy_in_thread: RunInThread
    stores: Mapping[str, IReadableStore] = msgspec.field(default_factory=dict)

    def stored(self, state: Mapping[str, Any]) -> _Stored | None:
        """
        The file of a capture that was delivered to this host; L{None} if none was, or if it was removed.

        @param state: the state of the capture.
        """
        for each in state["deliveries"]:
            if each["destination"] in self.stores and each["state"] == "delivered":
                path: str | None = self.stores[each["destination"]].path(each["location"])
                if path is None:
                    return None
                return _Stored(
                    path=path,
                    name=each.get("file") or os.path.basename(path),
                    size=each.get("bytes", state["bytes"]),
                    media_type=each.get("media_type", PCAP_MEDIA_TYPE),
                )
        return None

    def has(self, state: Mapping[str, Any]) -> bool:
        """
        Whether the file of a capture is here, as far as is known without looking.

        @param state: the state of the capture.
        """
        if self.files.find(state["id"]) is not None:
            return True
        is_spooled = any(each["state"] == "spooled" for each in state["deliveries"])
        return is_spooled or self.stored(state) is not None


class PcapFile(Resource):
    """C{/captures/ID/pcap}."""

    allowedMethods = (b"GET", b"HEAD")

    def __init__(self, capture_id: str, places: Places) -> None:
        super().__init__()
        self._capture_id = capture_id
        self._places = places

    async def render_GET(self, request: Any) -> Answer:
        """The file, or a part of it."""
        with Parameters(request, ("follow", "delivered")) as given:
            follow, delivered = (given.choice(name, ("0", "1")) == "1" for name in ("follow", "delivered"))
        file = None if delivered else self._places.files.find(self._capture_id)
        if file is not None:
            try:
                if file.is_rolling:
                    return await self._copied(request, file, follow=follow)
                return self._from_memory(request, file, follow=follow)
            except FileFreed:
                pass  # it may have failed just now
        if (answer := await self._from_disk(request)) is not None:
            return answer
        if (state := self._places.captures.get(self._capture_id)) is None:
            raise HTTPProblem(404, "There is no capture with this id.")
        if delivered and state["state"] in ("capturing", "delivering"):
            raise HTTPProblem(409, "This capture has not been delivered to a directory of this node yet.")
        raise HTTPProblem(410, "This node no longer has the packets of this capture.")

    async def _copied(self, request: Any, file: CaptureFile, *, follow: bool) -> Answer:
        """A copy of what a rolling capture holds, since it goes on and releases that."""
        if follow:
            detail = "A rolling capture can't be followed: it keeps its newest packets only."
            raise HTTPProblem(409, f"{detail} Without 'follow', the answer is what it holds.")
        if request.header("If-Match") is not None:
            raise _changed()
        headers = _disposition(file.name)
        if request.method == b"HEAD":
            # How large a copy would be isn't known.
            body = MemoryStream(self._places.reactor, file, 0, None)
            return Answer(media_type=PCAP_MEDIA_TYPE, body=body, headers=headers)
        try:
            copy, release = await self._places.files.copy(file, self._places.copy_in_thread)
        except CopyRefused as refused:
            detail = f"What the capture holds can't be copied now: {refused}."
            raise busy(detail, retry_after_seconds=RETRY_AFTER_SECONDS) from None
        body = CopyStream(self._places.reactor, copy, release)
        return Answer(media_type=PCAP_MEDIA_TYPE, body=body, headers=headers)

    def _from_memory(self, request: Any, file: CaptureFile, *, follow: bool) -> Answer:
        def stream(first: int, end: int | None) -> IBodyProducer:
            return MemoryStream(self._places.reactor, file, first, end)

        size, is_running = file.whole_bytes(), file.is_running
        if is_running and follow:
            return Answer(media_type=PCAP_MEDIA_TYPE, body=stream(0, None), headers=_disposition(file.name))
        etag = None if is_running else self._etag(size)
        return _part(request, stream, size=size, etag=etag, media_type=PCAP_MEDIA_TYPE, name=file.name)

    async def _from_disk(self, request: Any) -> Answer | None:
        """The answer from the local directory or the spool; L{None} if it is in neither."""
        state = self._places.captures.get(self._capture_id)
        stored = None if state is None else self._places.stored(state)
        if stored is not None and (answer := await self._from_store(request, stored)) is not None:
            return answer
        if self._places.in_spool is None:
            return None
        found = await self._places.in_spool(self._capture_id)
        if found is None:
            return None
        entry, path = found
        stored = _Stored(path=path, name=entry.name, size=entry.size, media_type=entry.media_type)
        return await self._from_store(request, stored)

    async def _from_store(self, request: Any, stored: _Stored) -> Answer | None:
        """The answer with a file on a disk, as it was delivered; L{None} if it isn't there any more."""
        try:
            file = await DiskFile.open(self._places.run_in_thread, stored.path)
        except OSError:
            return None
        try:
            # What has another size was changed by somebody.
            if file.size != stored.size:
                file.close()
                return None
            return _part(
                request,
                lambda first, end: DiskStream(file, first, end),
                size=stored.size,
                etag=self._etag(stored.size, stored.form(self._capture_id)),
                media_type=stored.media_type,
                name=stored.name,
            )
        except BaseException:
            file.close()
            raise

    def _etag(self, size: int, form: str = "") -> str:
        """What distinguishes the file: a capture has one of each form, which never changes after its end."""
        return f'"{self._capture_id}-{size}{form}"'


def _part(
    request: Any,
    stream: Callable[[int, int], IBodyProducer],
    *,
    size: int,
    etag: str | None,
    media_type: str,
    name: str,
) -> Answer:
    """
    The file, or the part of it that is asked for (RFC 9110, sections 13 and 14).

    @param etag: L{None} if the file still grows.

    @raise HTTPProblem: if nothing can be sent.
    """
    headers = {"Accept-Ranges": "bytes", **_disposition(name), **({} if etag is None else {"ETag": etag})}
    wanted = request.header("If-Match")
    if wanted is not None and not matches(wanted, etag, strongly=True):
        raise _changed()
    known = request.header("If-None-Match")
    if known is not None and etag is not None and matches(known, etag):
        # Nothing of it is sent, but the producer has to be stopped.
        return Answer(status=304, media_type=media_type, body=stream(0, size), headers=headers)
    part = None
    asked = request.header("Range")
    if asked is not None and request.method == b"GET" and request.header("If-Range") in (None, etag):
        try:
            part = read_range(asked, size)
        except OutOfRange:
            detail = f"The file has {size} bytes."
            raise HTTPProblem(416, detail, headers={"Content-Range": f"bytes */{size}"}) from None
    if part is None:
        return Answer(media_type=media_type, body=stream(0, size), headers=headers)
    first, end = part
    # Of a file that grows, the size isn't known.
    headers["Content-Range"] = f"bytes {first}-{end - 1}/{'*' if etag is None else size}"
    return Answer(status=206, media_type=media_type, body=stream(first, end), headers=headers)


def _changed() -> HTTPProblem:
    return HTTPProblem(412, "The file is not the one in If-Match.")


def _disposition(name: str) -> dict[str, str]:
    """How a browser is to save it. Names have no characters that would need quoting."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}
