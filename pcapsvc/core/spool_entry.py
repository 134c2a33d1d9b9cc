"""What must be known of a capture to deliver it later: the manifest beside its file in the spool."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.endpoint import EndpointError, endpoint_url
from pcapsvc.core.errors import Problem, SpoolError, shown, shown_words
from pcapsvc.core.fields import check_fields
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import Content
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.text import one_line as made_one_line
from pcapsvc.core.values import S3_FIELDS, one_line

#: The version of the manifest that is written, and the only one that is read.
VERSION = 1
#: No manifest is longer, in bytes: labels are bounded far below.
LONGEST_MANIFEST_BYTES = 64 * 1024
# More than a request and the configuration can come to, in characters.
_LONGEST_TAGS = 8192
_LONGEST_PROBLEM = 1000
_Tags = Annotated[str, one_line(_LONGEST_TAGS)]

# 2020, in seconds since the Unix epoch: a clock that tells an earlier time has not been set yet.
_EARLIEST = 1_577_836_800.0

# Both become parts of paths.
_Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
_FileName = Annotated[str, Meta(pattern=r"\A(?!\.)[A-Za-z0-9._-]{1,255}\Z")]

_ENTRY_NAME = re.compile(r"[0-9]{13}-[A-Za-z0-9_-]{1,64}-[A-Za-z0-9_-]{1,64}")


class SpoolEntry(msgspec.Struct, frozen=True, kw_only=True):
    """
    A capture that one destination has yet to get.

    @ivar v: L{VERSION}.
    @ivar capture: the capture's id.
    @ivar destination: the destination's name.
    @ivar name: the file's name there.
    @ivar tags: as in L{Artifact}; so is C{s3}.
    @ivar size: of the file, in bytes.
    @ivar sha256: of the file (FIPS 180-4), in hexadecimal digits.
    @ivar created: when it was spooled, in seconds since the Unix epoch.
    @ivar problem: why it was.
    """

    v: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    capture: _Word
    destination: _Word
    name: _FileName
    tags: str
    s3: dict[str, str | bool]
    size: Annotated[int, Meta(ge=1)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created: Annotated[float, Meta(ge=0, lt=1e10)]
    problem: str

    @property
    def entry_name(self) -> str:
        """The name of its folder in the spool: unique, and by age when sorted."""
        return entry_name(self.capture, self.destination, self.created)

    def age(self, now: float) -> float:
        """
        How long ago it was spooled, in seconds; 0 where that can't be told, as a clock was not set yet.

        @param now: in seconds since the Unix epoch.
        """
        return 0.0 if self.created < _EARLIEST else max(0.0, now - self.created)

    def artifact(self, content: Content) -> Artifact:
        """What is to be delivered, just as it was at first."""
        return Artifact(
            capture_id=self.capture,
            name=self.name,
            tags=self.tags,
            content=content,
            s3=self.s3,
            labels=self.labels,
        )

    @property
    def labels(self) -> Labels:
        """The labels of its request, which this version of the manifest doesn't record."""
        return Labels(via=None)


def entry_name(capture_id: str, destination: str, created: float) -> str:
    """The name of an entry's folder in the spool: C{MILLISECONDS-CAPTURE-DESTINATION}."""
    return f"{int(created * 1000):013d}-{capture_id}-{destination}"


def is_entry_name(name: str) -> bool:
    """Whether an entry's folder may be called like this."""
    return _ENTRY_NAME.fullmatch(name) is not None


def make_entry(
    artifact: Artifact, destination: str, *, size: int, sha256: str, created: float, problem: str
) -> SpoolEntry:
    """The entry of an artifact; the rest is as in L{SpoolEntry}."""
    return SpoolEntry(
        v=VERSION,
        capture=artifact.capture_id,
        destination=destination,
        name=artifact.name,
        tags=artifact.tags,
        s3=dict(artifact.s3),
        size=size,
        sha256=sha256,
        created=created,
        problem=made_one_line(problem, most=_LONGEST_PROBLEM),
    )


def encode_entry(entry: SpoolEntry) -> bytes:
    """The manifest of an entry: JSON, for people to read as well."""
    # Through the standard replacement, as a lone surrogate has no UTF-8 and is worth no capture.
    plain = {name: _plain(getattr(entry, name)) for name in entry.__struct_fields__}
    return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def decode_entry(manifest: bytes) -> SpoolEntry:
    """
    The entry of a manifest.

    @raise SpoolError: where it is none, in words that go on from its path.
    """
    if len(manifest) > LONGEST_MANIFEST_BYTES:
        raise SpoolError(f"is longer than {LONGEST_MANIFEST_BYTES} bytes")
    try:
        document = msgspec.json.decode(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolError(f"is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise SpoolError("is no manifest of ours")
    if document.get("v") != VERSION:
        raise SpoolError(
            f"has the version {shown(document.get('v'))}, and {VERSION} is the only one known here"
        )
    try:
        entry = msgspec.convert(document, SpoolEntry)
    except msgspec.ValidationError as error:
        raise SpoolError(f"is no manifest of ours: {error}") from None
    problem = next(_problems_of_s3(entry.s3), None)
    if problem is not None:
        raise SpoolError(f"is no manifest of ours: it says of S3: {problem}")
    return msgspec.structs.replace(
        entry, tags=_as_line(entry.tags), problem=made_one_line(entry.problem, most=_LONGEST_PROBLEM)
    )


def _as_line(tags: str) -> str:
    """Tags as they are; what a header or the log might take amiss is replaced."""
    try:
        return msgspec.convert(tags, _Tags)
    except msgspec.ValidationError:
        return made_one_line(tags, most=_LONGEST_TAGS)


def _problems_of_s3(given: Mapping[str, Any]) -> Iterator[Problem]:
    """What no request can say: they are held to the same types."""
    for key in set(given) - set(S3_FIELDS):
        yield Problem(path=shown_words(key), rule="is not a known key")
    yield from check_fields(CaptureRequest, given)[1]
    if isinstance(endpoint := given.get("endpoint"), str):
        try:
            endpoint_url(endpoint)
        except EndpointError as error:
            yield Problem(path="endpoint", value=shown(endpoint), rule=str(error))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
