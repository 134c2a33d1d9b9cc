"""Contents and artifacts for the tests of destinations."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from pcapsvc.core.artifact import PCAP_MEDIA_TYPE, Artifact
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import Content


class MemfdContent:
    """
    Bytes in a memfd, which remembers what was opened.

    @ivar opened: all readers that were given out.
    """

    def __init__(self, data: bytes = b"", *, zeros: int = 0) -> None:
        self._descriptor = os.memfd_create("content", os.MFD_CLOEXEC)
        self.size = len(data) or zeros
        self.opened: list[BinaryIO] = []
        if data:
            os.write(self._descriptor, data)
        else:
            chunk = bytes(1 << 20)
            for done in range(0, zeros, len(chunk)):
                os.write(self._descriptor, chunk[: zeros - done])

    def open(self) -> BinaryIO:
        reader = open(f"/proc/self/fd/{self._descriptor}", "rb")  # noqa: SIM115
        self.opened.append(reader)
        return reader

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def all_closed(self) -> bool:
        return all(reader.closed for reader in self.opened)


def make_artifact(
    content: Content,
    *,
    capture_id: str = "abc",
    name: str = "web1-eth0-1700000000-abc.pcap",
    tags: str = "node:web1",
    media_type: str = PCAP_MEDIA_TYPE,
    destination: str = "s3",
    **options: Any,
) -> Artifact:
    """An artifact, with options of one destination."""
    by_destination = {destination: options} if options else {}
    return Artifact(
        capture_id=capture_id,
        name=name,
        media_type=media_type,
        tags=tags,
        content=content,
        options=by_destination,
        labels=Labels(via="test"),
    )


def resident_bytes() -> int:
    """The memory that this process holds now (proc(5), C{/proc/pid/statm})."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """
    The most memory that this process held within a C{with} block.

    The kernel keeps the peak: writing 5 to C{clear_refs} begins it anew (proc(5)).

    @ivar grown_bytes: by how much the peak was over the beginning.
    """

    grown_bytes = 0

    def __enter__(self) -> PeakMemory:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self._before = resident_bytes()
        return self

    def __exit__(self, *exception: object) -> None:
        with open("/proc/self/status") as file:
            peak = next(line for line in file if line.startswith("VmHWM:"))
        self.grown_bytes = int(peak.split()[1]) * 1024 - self._before
