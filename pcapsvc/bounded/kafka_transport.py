"""What is read from and written to a connection to Kafka with (kafka-python, version 3.0)."""

from __future__ import annotations

from typing import Any

from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from pcapsvc.bounded.kafka_handshake import shake_hands
from pcapsvc.bounded.kafka_reads import receive


class _Bounded:
    """Reads no more at once than is good."""

    _sock: Any

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        return receive(self._sock)


class _TCPTransport(_Bounded, KafkaTCPTransport):  # type: ignore[misc] # kafka-python has no types
    pass


class _SSLTransport(_Bounded, KafkaSSLTransport):  # type: ignore[misc] # kafka-python has no types
    pass


async def make_transport(manager: Any, node: Any, plain: Any, timeout_at: float) -> Any:
    """
    Make the transport of a connection, like a manager of the library, but within limits.

    @param manager: the manager of the connections.
    @param node: the broker.
    @param plain: the connected socket.
    @param timeout_at: by when the handshake must have ended, in seconds of C{time.monotonic()}.

    @raise kafka.errors.KafkaError: if it fails. The socket is closed.
    """
    if manager.ssl_enabled:
        context = manager.config["ssl_context"]
        transport = _SSLTransport(manager._net, plain, host=node.host, ssl_context=context)
    else:
        transport = _TCPTransport(manager._net, plain, host=node.host)
    await shake_hands(manager._net, transport, timeout_at)
    return transport
