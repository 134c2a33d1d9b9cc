"""
The heads of HTTP/1 responses (RFC 9112, sections 2 to 5), as they arrive.

Libraries read more than the grammar allows: C{2_01} is a number to Python, and any protocol will do. Such an
answer proves nothing.
"""

from __future__ import annotations

import re

#: The longest head, in bytes. Node's client has the same limit.
MAX_HEAD_BYTES = 16 * 1024

#: How many lines it may have.
MAX_HEAD_LINES = 256

#: How many interim responses (1xx) may precede the final one.
MAX_INTERIM = 10

_PROTOCOL = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_SWITCHING_PROTOCOLS = 101


class UnusableResponse(Exception):
    """What a server sent is not a response that can be used. The message says why, and repeats nothing."""


class FinalResponse:
    """
    What arrives from a server, beginning with the head of the final response.

    Interim ones are left out: each would be logged by Twisted's client.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        # Of the head that is arriving; None until its first line has arrived.
        self._status: int | None = None
        # How much of it has no end of a head.
        self._searched = 0
        self._interim = 0
        self._has_begun = False

    def receive(self, data: bytes) -> bytes:
        """
        Add what has arrived.

        @return: what is to be passed on. Until the final head is whole, that is nothing.

        @raise UnusableResponse: if it is not the head of a response, or exceeds a limit.
        """
        if self._has_begun:
            return data
        self._held += data
        while (end := self._end_of_head()) is not None:
            if self._status is not None and self._status >= 200:
                self._has_begun = True
                held, self._held = bytes(self._held), bytearray()
                return held
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise UnusableResponse(f"the server sent more than {MAX_INTERIM} interim responses")
            del self._held[:end]
            self._status, self._searched = None, 0
        return b""

    def _end_of_head(self) -> int | None:
        """Where the head ends that is arriving; L{None} if its end has yet to arrive."""
        if self._status is None:
            self._status = self._read_status()
        found = _END_OF_HEAD.search(self._held, max(0, self._searched - 2))
        self._searched = len(self._held)
        end = found.end() if found else None
        length = end or len(self._held)
        if length > MAX_HEAD_BYTES:
            raise UnusableResponse(f"the head of the response is longer than {MAX_HEAD_BYTES} bytes")
        if self._held.count(b"\n", 0, length) > MAX_HEAD_LINES:
            raise UnusableResponse(f"the head of the response has more than {MAX_HEAD_LINES} lines")
        return end

    def _read_status(self) -> int | None:
        if line := _STATUS_LINE.match(self._held):
            status = int(line[1])
            if status == _SWITCHING_PROTOCOLS:
                # A final response (RFC 9110, section 15.2.2). What follows isn't HTTP.
                raise UnusableResponse("answered 101 (Switching Protocols), which was not requested")
            return status
        if b"\n" in self._held or not self._held.startswith(_PROTOCOL[: len(self._held)]):
            raise UnusableResponse("the server's answer is not an HTTP/1 response")
        return None
