"""The envelopes of SNS."""

from __future__ import annotations

import msgspec

from pcapsvc.core.request import MAX_BODY_BYTES

_MAX_ENVELOPE_ID_CHARACTERS = 200
# The longest message takes six times as many if each is an escape sequence. What is beside it in an envelope
# takes two thousand.
_MAX_ENVELOPE_CHARACTERS = 6 * MAX_BODY_BYTES + 16 * 1024


class _Envelope(msgspec.Struct):
    """What SNS wraps a message in, unless delivery is raw (SNS Developer Guide, "HTTP/HTTPS JSON")."""

    kind: str = msgspec.field(name="Type")
    message: str = msgspec.field(name="Message")
    message_id: str | None = msgspec.field(name="MessageId", default=None)


_read_envelope = msgspec.json.Decoder(_Envelope).decode


def unwrapped(body: str) -> tuple[str, str | None]:
    """
    The message itself, and the id of the SNS envelope that it was in; L{None} without one.

    What is longer than the envelope of any request is left as it is: nobody needs to know what is in it.
    """
    if len(body) > _MAX_ENVELOPE_CHARACTERS or '"Notification"' not in body:
        return body, None
    try:
        envelope = _read_envelope(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body, None
    if envelope.kind != "Notification":
        return body, None
    # Compatible services may omit the id. It is remembered: one that is too long is not SNS's.
    is_usable = 0 < len(envelope.message_id or "") <= _MAX_ENVELOPE_ID_CHARACTERS
    return envelope.message, envelope.message_id if is_usable else None
