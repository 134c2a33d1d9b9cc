"""The manifest of a capture in the spool: all that is needed to deliver it later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pcapsvc.core.artifact import PCAP_MEDIA_TYPE, Artifact, is_file_name
from pcapsvc.core.errors import SpoolError, shown
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import Content
from pcapsvc.core.text import one_line as made_one_line
from pcapsvc.core.values import Label, one_line

#: The version of the manifest that is written. Version 1 is read as well.
VERSION = 2
#: The longest manifest, in bytes. Those of real requests are far shorter.
LONGEST_MANIFEST_BYTES = 64 * 1024
# More than a request and the configuration can add up to, in characters.
_LONGEST_TAGS = 8192
_LONGEST_PROBLEM = 1000
_LONGEST_LABEL = 1024
_LONGEST_NODE = 1000
_Tags = Annotated[str, one_line(_LONGEST_TAGS)]

# 2020, in seconds since the Unix epoch. A clock with an earlier time has not been set yet.
_EARLIEST = 1_577_836_800.0

# Both become parts of paths.
_Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
_FileName = Annotated[str, Meta(pattern=r"\A(?!\.)[A-Za-z0-9._-]{1,255}\Z")]
# Becomes a header. RFC 6838, section 4.2.
_MediaType = Annotated[
    str, Meta(pattern=r"\A[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}\Z")
]
_Text = Annotated[str, Meta(max_length=4096)]
_Node = Annotated[str, Meta(max_length=_LONGEST_NODE + 1)]
_Options = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=64)],
        bool | int | float | _Text | Annotated[list[_Text], Meta(max_length=256)],
    ],
    Meta(max_length=64),
]
_Labels = Annotated[dict[Annotated[str, Meta(max_length=64)], int | _Text], Meta(max_length=16)]

_ENTRY_NAME = re.compile(r"[0-9]{13}-[A-Za-z0-9_-]{1,64}-[A-Za-z0-9_-]{1,64}")


class SpoolEntry(msgspec.Struct, frozen=True, kw_only=True):
    """
    A capture that is still to be delivered to one destination.

    @ivar v: L{VERSION}.
    @ivar capture: the capture's id.
    @ivar destination: the destination's name.
    @ivar name: the file's name there.
    @ivar media_type: the file's media type (RFC 6838).
    @ivar tags: as in L{Artifact}.
    @ivar options: what the request says of this destination, by field. Only their form is checked here; the
        destination checks the rest before each delivery.
    @ivar labels: those of its request, by name: see L{Labels}.
    @ivar node: as in L{Artifact}, likewise C{started}.
    @ivar size: of the file, in bytes.
    @ivar sha256: of the file (FIPS 180-4), in hexadecimal digits.
    @ivar created: when it was spooled, in seconds since the Unix epoch.
    @ivar problem: why it was.
    """

    v: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    capture: _Word
    destination: _Word
    name: _FileName
    media_type: _MediaType
    tags: str
    options: _Options
    labels: _Labels
    node: _Node | None = None
    started: Annotated[float, Meta(ge=0, lt=1e12)] | None = None
    size: Annotated[int, Meta(ge=1)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: Annotated[float, Meta(ge=0, lt=1e10)]
    problem: str

    @property
    def entry_name(self) -> str:
        """The name of its directory in the spool: unique, and sorted by age."""
        return entry_name(self.capture, self.destination, self.created)

    def age(self, now: float) -> float:
        """
        How long ago it was spooled, in seconds; 0 if that is unknown because a clock was not set yet.

        @param now: in seconds since the Unix epoch.
        """
        return 0.0 if self.created < _EARLIEST else max(0.0, now - self.created)

    def artifact(self, content: Content) -> Artifact:
        """What is to be delivered, as it was at first."""
        return Artifact(
            capture_id=self.capture,
            name=self.name,
            media_type=self.media_type,
            tags=self.tags,
            content=content,
            options={self.destination: self.options} if self.options else {},
            labels=self.request_labels,
            node=self.node,
            started=self.started,
        )

    @property
    def request_labels(self) -> Labels:
        """The labels of its request."""
        return Labels.from_mapping(self.labels)


class _SpoolEntry1(msgspec.Struct, frozen=True, kw_only=True):
    """
    Version 1: for pcap files only. What a request says of S3 is in the manifest of every destination.
    The labels are not recorded.
    """

    v: Annotated[int, Meta(ge=1, le=1)]
    capture: _Word
    destination: _Word
    name: _FileName
    tags: str
    s3: _Options
    size: Annotated[int, Meta(ge=1)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: Annotated[float, Meta(ge=0, lt=1e10)]
    problem: str

    def upgraded(self) -> SpoolEntry:
        """The same entry in the present version."""
        return SpoolEntry(
            capture=self.capture,
            destination=self.destination,
            name=self.name,
            media_type=PCAP_MEDIA_TYPE,
            tags=self.tags,
            options=self.s3 if self.destination == "s3" else {},
            labels={},
            size=self.size,
            sha256=self.sha256,
            created=self.created,
            problem=self.problem,
        )


def entry_name(capture_id: str, destination: str, created: float) -> str:
    """The name of an entry's directory in the spool: C{MILLISECONDS-CAPTURE-DESTINATION}."""
    return f"{int(created * 1000):013d}-{capture_id}-{destination}"


def is_entry_name(name: str) -> bool:
    """Whether this can be the name of an entry's directory."""
    return _ENTRY_NAME.fullmatch(name) is not None


def make_entry(
    artifact: Artifact, destination: str, *, size: int, sha256: str, created: float, problem: str
) -> SpoolEntry:
    """The entry of an artifact; the rest is as in L{SpoolEntry}."""
    return SpoolEntry(
        capture=artifact.capture_id,
        destination=destination,
        name=artifact.name,
        media_type=artifact.media_type,
        tags=artifact.tags,
        options=dict(artifact.options.get(destination, {})),
        labels=artifact.labels.as_mapping(),
        node=None if artifact.node is None else made_one_line(artifact.node, most=_LONGEST_NODE),
        started=None if artifact.started is None else max(0.0, artifact.started),
        size=size,
        sha256=sha256,
        created=created,
        problem=made_one_line(problem, most=_LONGEST_PROBLEM),
    )


def encode_entry(entry: SpoolEntry) -> bytes:
    """
    The manifest of an entry: JSON, indented for people.

    @raise SpoolError: if L{decode_entry} would refuse it.
    """
    # Lone surrogates have no UTF-8, and are not worth losing a capture for.
    manifest = (
        msgspec.json.format(msgspec.json.encode(_plain(msgspec.structs.asdict(entry))), indent=2) + b"\n"
    )
    decode_entry(manifest)
    return manifest


def decode_entry(manifest: bytes) -> SpoolEntry:
    """
    The entry of a manifest.

    @raise SpoolError: if it is not a valid manifest. The message continues the manifest's path.
    """
    if len(manifest) > LONGEST_MANIFEST_BYTES:
        raise SpoolError(f"is longer than {LONGEST_MANIFEST_BYTES} bytes")
    try:
        document = msgspec.json.decode(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolError(f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise SpoolError("is not a pcapsvc manifest")
    version = document.get("v")
    try:
        if version == VERSION:
            entry = msgspec.convert(document, SpoolEntry)
        elif version == 1:
            entry = msgspec.convert(document, _SpoolEntry1).upgraded()
        else:
            raise SpoolError(f"has the unknown version {shown(version)}; the latest known is {VERSION}")
    except msgspec.ValidationError as error:
        raise SpoolError(f"is not a pcapsvc manifest: {error}") from None
    if not is_file_name(entry.name, entry.capture):
        raise SpoolError("is not a pcapsvc manifest: `$.name` is not that of this capture's file")
    return msgspec.structs.replace(
        entry,
        tags=_as_line(entry.tags, _Tags, _LONGEST_TAGS),
        labels={name: _as_label(value) for name, value in entry.labels.items()},
        problem=made_one_line(entry.problem, most=_LONGEST_PROBLEM),
    )


def _as_line(text: str, kind: Any, most: int) -> str:
    """A text as it is, if it is one line; or made one, without what a header or the log must not have."""
    try:
        return msgspec.convert(text, kind)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        return made_one_line(text, most=most)


def _as_label(value: int | str) -> int | str:
    return _as_line(value, Label, _LONGEST_LABEL) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
