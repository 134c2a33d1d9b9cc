"""What a node sends as the file of a capture: decompressed, and recognized by its first bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pcapsvc.client.api import Body
from pcapsvc.client.decompressing import decompressed
from pcapsvc.client.pcapng_packets import MAGIC
from pcapsvc.client.status import ClientError
from pcapsvc.core.pcap_file import MICROSECONDS, NANOSECONDS
from pcapsvc.core.text import one_line

_MAGICS = {MAGIC, *(struct.pack(f"{order}I", each) for order in "<>" for each in (MICROSECONDS, NANOSECONDS))}
_MAGIC_BYTES = len(MAGIC)


def read_capture(body: Body) -> Iterator[bytes]:
    """
    The bytes of a pcap or pcapng file, piece by piece.

    @param body: what a node sends as such. It may be compressed, as its media type says.

    @raise ClientError: if it is something else, before there is the first piece; or if it is damaged.
    """
    media_type = body.headers.get("Content-Type", "")
    pieces, begin = decompressed(body, media_type), b""
    for piece in pieces:
        begin += piece
        if len(begin) >= _MAGIC_BYTES:
            break
    if begin[:_MAGIC_BYTES] not in _MAGICS:
        kind = one_line(media_type, most=100) or "a capture"
        raise ClientError(f"what the node sent as {kind} is neither a pcap nor a pcapng file")
    yield begin
    yield from pieces
