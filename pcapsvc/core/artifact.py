"""From a recording to what a destination stores: its name, its tags, its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pcapsvc.core.labels import Labels
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import Content, Recording

# What stands in a file name for a character that a file system, a URL or a shell may take amiss.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """
    A pcap file, ready to be delivered.

    @ivar name: the file's name: ASCII letters, digits, '.', '_' and '-', and no path.
    @ivar tags: joined by commas; any text of one line.
    @ivar s3: what the request says of S3, by the request's field.
    @ivar labels: what the events about it repeat.
    @ivar may_be_there: whether there was an attempt before this one, which may have arrived,
        whatever came of it.
    """

    capture_id: str
    name: str
    tags: str
    content: Content
    s3: Mapping[str, Any]
    labels: Labels
    may_be_there: bool = False


def make_artifact(recording: Recording) -> Artifact:
    """The artifact of a recording."""
    return Artifact(
        capture_id=recording.capture_id,
        name=file_name(recording),
        tags=",".join(_tags(recording.plan)),
        content=recording.content,
        s3=recording.plan.s3,
        labels=recording.plan.labels,
    )


def file_name(recording: Recording) -> str:
    """The name of a recording's file: C{NODE-INTERFACE-UNIXSECONDS-ID.pcap}."""
    plan = recording.plan
    node, interface = (_UNSAFE.sub("_", part) for part in (plan.node, plan.interface))
    # A file system takes 255 bytes; a leading dot would hide the file.
    return f"{node[:150].lstrip('.')}-{interface}-{int(recording.started)}-{recording.capture_id}.pcap"


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
