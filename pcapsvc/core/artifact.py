"""From a recording to what a destination stores: its name, its tags, its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from pcapsvc.core.compression import Compression
from pcapsvc.core.labels import Labels
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import Content, Recording

#: The media type of a pcap file (IANA's registry).
PCAP_MEDIA_TYPE = "application/vnd.tcpdump.pcap"
#: The suffix of its name.
PCAP_SUFFIX = ".pcap"
#: Those of a pcapng file. It has no registered media type; this is what Wireshark registers for it.
PCAPNG_MEDIA_TYPE, PCAPNG_SUFFIX = "application/x-pcapng", ".pcapng"

# Characters that could mean something to a file system, a URL or a shell.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """
    A file, ready to be delivered.

    @ivar name: the file's name: ASCII letters, digits, '.', '_' and '-', and no path.
    @ivar media_type: the file's media type (RFC 6838).
    @ivar tags: joined by commas; any text of one line.
    @ivar options: what the request says of each destination: its fields, by the destination's name.
    @ivar labels: what the events about it repeat.
    @ivar compressions: how it is to be compressed for each destination, as in L{CapturePlan}.
    @ivar node: the name of the node; L{None} only for a capture that was spooled by a version that didn't
        record it, likewise C{started}.
    @ivar started: when the capture began, in seconds since the Unix epoch.
    @ivar may_be_there: whether an earlier attempt may have arrived, although it failed.
    """

    capture_id: str
    name: str
    media_type: str
    tags: str
    content: Content
    options: Mapping[str, Mapping[str, Any]]
    labels: Labels
    node: str | None = None
    started: float | None = None
    may_be_there: bool = False
    compressions: Mapping[str, str] = msgspec.field(default_factory=dict)


def make_artifact(recording: Recording, content: Content, *, suffix: str, media_type: str) -> Artifact:
    """
    The artifact of a recording.

    @param content: the recording, encoded.
    @param suffix: of the file's name, with the dot.
    @param media_type: as in L{Artifact}.
    """
    return Artifact(
        capture_id=recording.capture_id,
        name=file_name(recording.plan, recording.started, recording.capture_id, suffix),
        media_type=media_type,
        tags=",".join(_tags(recording.plan)),
        content=content,
        options=recording.plan.options,
        labels=recording.plan.labels,
        node=recording.plan.node,
        started=recording.started,
        compressions=recording.plan.compressions,
    )


def compressed(artifact: Artifact, content: Content, compression: Compression) -> Artifact:
    """
    An artifact that is compressed.

    @param content: of the artifact, compressed.
    """
    return replace(
        artifact,
        name=artifact.name + compression.suffix,
        media_type=compression.media_type,
        content=content,
        compressions={},
    )


def file_name(plan: CapturePlan, started: float, capture_id: str, suffix: str) -> str:
    """
    The name of a capture's file: C{NODE-INTERFACE-UNIXSECONDS-ID}, and the suffix.

    @param started: in seconds since the Unix epoch.
    """
    node, interface = (_UNSAFE.sub("_", part) for part in (plan.node, plan.interface))
    # A file name may have up to 255 bytes, and a leading dot would hide the file. The alternative name of an
    # interface has up to 127; the tags have it whole.
    return f"{node[:150].lstrip('.')}-{interface[:60]}-{int(started)}-{capture_id}{suffix}"


def is_file_name(name: str, capture_id: str | None = None) -> bool:
    """
    Whether L{file_name} may have made this name for a capture, compressed or not.

    @param capture_id: L{None} is any.
    """
    words = "[A-Za-z0-9_]+" if capture_id is None else re.escape(capture_id)
    pattern = rf"[A-Za-z0-9._-]*-[A-Za-z0-9._-]+-[0-9]{{1,12}}-{words}(?:\.[a-z0-9]{{1,16}}){{1,3}}"
    return not name.startswith(".") and re.fullmatch(pattern, name) is not None


def _tags(plan: CapturePlan) -> Iterator[str]:
    request = plan.request
    if request.customer is not None:
        yield f"customer:{request.customer}"
    if request.alertid is not None:
        yield f"alertid:{request.alertid}"
    if request.tags is not None:
        yield request.tags
    if plan.alias is not None:
        yield f"alias:{plan.alias}"
    yield f"node:{plan.node}"
    yield f"interface:{plan.interface}"
    yield f"snaplength:{plan.snap_length}"
