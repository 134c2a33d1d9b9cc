"""
What a subscriber receives from Redis, taken apart into messages and other replies.

The format is RESP version 2 (Redis documentation, "Redis serialization protocol specification"). hiredis
would keep a bulk string of any length in memory until it is complete. Here, the bytes of a message that is
too long are dropped as they arrive.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pcapsvc.net.redis import ProtocolError

#: The longest message. Redis accepts half a gigabyte (proto-max-bulk-len), and a request has up to 64 KiB.
MAX_MESSAGE_BYTES = 1024 * 1024

#: The longest reply that is not a message, without the name of the channel.
MAX_REPLY_BYTES = 4096

# How many messages, or other replies, are handed over between two looks at the clock.
_AT_ONCE = 8
# How many nested values a reply may have.
_MAX_VALUES = 64


class Frames:
    """
    Takes apart what is received.

    @param channel: the subscribed channel.
    @param on_message: is called with each message.
    @param on_skipped: is called with the length of each message that is too long.
    @param on_reply: is called with each complete reply of another kind, as it was received.
    @param seconds: the time in seconds, of a monotonic clock.
    """

    def __init__(
        self,
        channel: bytes,
        *,
        on_message: Callable[[bytes], None],
        on_skipped: Callable[[int], None],
        on_reply: Callable[[bytes], None],
        seconds: Callable[[], float],
    ) -> None:
        self._on_message = on_message
        self._on_skipped = on_skipped
        self._on_reply = on_reply
        self._seconds = seconds
        self._message = re.compile(
            rb"\*3\r\n\$7\r\nmessage\r\n\$%d\r\n%s\r\n\$(\d{1,12})\r\n" % (len(channel), re.escape(channel))
        )
        self._max_reply_bytes = MAX_REPLY_BYTES + len(channel)
        self._buffer = bytearray()
        # How long the buffer must be before it is worth another look.
        self._needed = 0
        self._to_skip = 0

    def receive(self, data: bytes) -> None:
        """Keep what has arrived."""
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        self._buffer += data

    def hand_over(self, most_seconds: float) -> bool:
        """
        Hand over what is complete.

        @param most_seconds: how long that may take. It is looked at after every eighth message or reply.

        @return: whether that was everything.

        @raise ProtocolError: if it isn't RESP, or a reply is too long.
        """
        if len(self._buffer) < self._needed:
            return True
        whole, self._needed = bytes(self._buffer), 0
        at, is_everything = self._take_apart(whole, self._seconds() + most_seconds)
        del self._buffer[:at]
        return is_everything

    def _take_apart(self, data: bytes, until: float) -> tuple[int, bool]:
        """Hand over what is complete. Return how many bytes that was, and whether it was everything."""
        at, most, end, handed_over = 0, MAX_MESSAGE_BYTES, len(data), 0
        match, on_message, seconds = self._message.match, self._on_message, self._seconds
        while at < end:
            found = match(data, at)
            if found is None:
                after = self._reply_end(data, at)
                if after is None:
                    break
                self._on_reply(data[at:after])
                at = after
            else:
                begins = found.end()
                ends = begins + int(found[1])
                after = ends + 2
                if ends - begins > most:
                    self._on_skipped(ends - begins)
                    self._to_skip = max(0, after - end)
                    at = min(after, end)
                elif after > end:
                    self._needed = after - at
                    break
                else:
                    if data[ends:after] != b"\r\n":
                        raise ProtocolError("a message is longer than announced")
                    on_message(data[begins:ends])
                    at = after
            handed_over += 1
            if not handed_over % _AT_ONCE and seconds() >= until:
                return at, at == end
        return at, True

    def _reply_end(self, data: bytes, at: int) -> int | None:
        """Where the reply that begins at C{at} ends; L{None} if it is not complete."""
        limit = at + self._max_reply_bytes
        ends = _value_end(data, at, min(len(data), limit))
        if ends is None and len(data) >= limit:
            raise ProtocolError(f"a reply is longer than {self._max_reply_bytes} bytes")
        return ends


def _value_end(data: bytes, at: int, limit: int) -> int | None:
    left, values = 1, 0
    while left:
        line_ends = data.find(b"\r\n", at, limit)
        kind = data[at : at + 1]
        if kind and kind not in b"+-:$*":
            raise ProtocolError(f"a reply begins with {kind!r}")
        if line_ends < 0:
            return None
        after = line_ends + 2
        left -= 1
        if kind in b"$*":
            count = _length(data[at + 1 : line_ends])
            if kind == b"*":
                left += max(0, count)
                values += max(0, count)
            elif count >= 0:
                after += count + 2
        if values > _MAX_VALUES:
            raise ProtocolError(f"a reply has more than {_MAX_VALUES} values")
        if after > limit:
            return None
        at = after
    return at


def _length(digits: bytes) -> int:
    if not re.fullmatch(rb"-1|\d{1,12}", digits):
        raise ProtocolError(f"a length is {digits!r}")
    return int(digits)
