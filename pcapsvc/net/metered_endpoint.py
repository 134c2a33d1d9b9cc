"""
Connections to servers that may send anything.

What they send is counted beneath TLS, in bytes and in records: there may be records without end of which
nobody above learns anything, such as for new keys. OpenSSL takes 40 microseconds for each of these, and 64
KiB have more than two thousand.
"""

# Twisted's wrappers have hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

#: How much is read in one turn of the reactor.
READ_BYTES = 2 * 1024

#: How many records of TLS a server may send.
MAX_RECORDS = 2000

# What a record begins with: its type, a version, and the length of the rest (RFC 8446, section 5.1).
_RECORD_HEADER_BYTES = 5


@implementer(IStreamClientEndpoint)
class MeteredEndpoint:
    """
    An endpoint whose connections are closed when the server has sent too much.

    @param most_bytes: how much it may send.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, most_bytes: int) -> None:
        self._endpoint = endpoint
        self._most_bytes = most_bytes

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See L{IStreamClientEndpoint}. What exceeds the limit is reported as the reason of the loss."""
        metering = _Metering(protocolFactory, self._most_bytes)
        connecting: Deferred[Any] = self._endpoint.connect(metering)
        return connecting.addCallback(lambda meter: meter.wrappedProtocol)


class _Meter(ProtocolWrapper):
    factory: _Metering
    transport: Any

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._left_bytes = factory.most_bytes
        self._records = _Records() if isinstance(wrapped, TLSMemoryBIOProtocol) else None
        self._reason: Failure | None = None

    def makeConnection(self, transport: Any) -> None:
        transport.bufferSize = READ_BYTES
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._refuse(f"the server sent more than {self.factory.most_bytes} bytes")
        elif self._records is not None and self._records.receive(data) > MAX_RECORDS:
            self._refuse(f"the server sent more than {MAX_RECORDS} TLS records")
        else:
            super().dataReceived(data)

    def _refuse(self, words: str) -> None:
        reason = Failure(ConnectionError(words))
        if isinstance(self.wrappedProtocol, TLSMemoryBIOProtocol):
            # It would only report that its end was cut off. This is its way to close with a reason.
            self.wrappedProtocol.failVerification(reason)
        else:
            self._reason = reason
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(self._reason or reason)


class _Records:
    """Counts records of TLS as they arrive."""

    def __init__(self) -> None:
        self._count = 0
        # The beginning of a header; or else how much of the last record is still to come.
        self._held = b""
        self._to_come = 0

    def receive(self, data: bytes) -> int:
        """
        Add what has arrived.

        @return: how many records have begun.
        """
        data = self._held + data
        start = self._to_come
        while start + _RECORD_HEADER_BYTES <= len(data):
            self._count += 1
            body = start + _RECORD_HEADER_BYTES
            start = body + int.from_bytes(data[body - 2 : body], "big")
        self._held = data[start:]
        self._to_come = max(0, start - len(data))
        return self._count


class _Metering(WrappingFactory):
    protocol = _Meter
    noisy = False

    def __init__(self, wrapped: Any, most_bytes: int) -> None:
        super().__init__(wrapped)
        self.most_bytes = most_bytes
