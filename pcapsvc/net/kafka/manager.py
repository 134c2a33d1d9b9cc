"""Manages connections to brokers; works around bugs of kafka-python's own classes (version 3.0)."""

from __future__ import annotations

from threading import Lock
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager

from pcapsvc.bounded.kafka_transport import make_transport
from pcapsvc.net.kafka.token import UnusableToken

_REFUSALS = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    UnusableToken,
)


class _ClosingSocket(KafkaNetSocket):  # type: ignore[misc] # kafka-python has no types
    """Makes sockets, and closes those that fail to connect. The library finds it by its "proxy" scheme."""

    SCHEMES = ("pcapsvc",)

    def __init__(self, url: str) -> None:
        super().__init__()

    async def connect(
        self, net: Any, address: Any, options: Any = (), timeout_at: float | None = None
    ) -> Any:
        family, kind, protocol, _, where = address
        made = self.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            for option in options:
                made.setsockopt(*option)
            return await self.sock_connect(net, made, where, timeout_at=timeout_at)
        except BaseException:
            made.close()
            raise


class Client(KafkaNetClient):  # type: ignore[misc] # kafka-python has no types
    """Can be closed by several threads at once; the library's own raises in one of them."""

    def __init__(self, **configuration: Any) -> None:
        super().__init__(**configuration)
        self._closing = Lock()

    def close(self, node_id: Any = None) -> None:
        """Close the connection to a broker; by default, to all of them, permanently."""
        with self._closing:
            super().close(node_id)


class Manager(KafkaConnectionManager):  # type: ignore[misc] # kafka-python has no types
    """
    Manages connections, and remembers a failed authentication rather than repeating it.

    @ivar refusal: why authentication failed, or was not even tried; L{None} if it didn't fail.
    """

    def __init__(self, net: Any, **configuration: Any) -> None:
        super().__init__(net, **configuration)
        self.refusal: Exception | None = None
        # The consumer's own setting for this has no effect: brokers would create the topic.
        self.cluster.config["allow_auto_create_topics"] = False

    async def _build_transport(self, node: Any, timeout_at: float) -> Any:
        # If it fails, the library's own leaks the socket: one for each attempt during an outage.
        plain = await create_connection(
            self._net,
            node.host,
            node.port,
            self.config["socket_options"],
            proxy_url=f"{_ClosingSocket.SCHEMES[0]}://",
            timeout_at=timeout_at,
        )
        try:
            return await make_transport(self, node, plain, timeout_at)
        except kafka_errors.KafkaError:
            raise kafka_errors.KafkaConnectionError("the handshake failed") from None

    async def _connect(
        self, node: Any, conn: Any, reset_backoff_on_connect: bool = True, timeout_at: float | None = None
    ) -> None:
        # The library counts a failed greeting or authentication as a success, and would retry at once.
        before = self._backoff.get(node.node_id)
        await super()._connect(node, conn, reset_backoff_on_connect=False, timeout_at=timeout_at)
        if not reset_backoff_on_connect:
            return
        if conn.init_future.succeeded():
            self.reset_backoff(node.node_id)
        elif self._backoff.get(node.node_id) == before:
            self.update_backoff(node.node_id)

    def get_connection(self, *args: Any, **more: Any) -> Any:
        """The library's own connection to a broker, new or not; its failed authentication is noticed here."""
        connection = super().get_connection(*args, **more)
        connection.init_future.add_errback(self._not_connected)
        return connection

    def _not_connected(self, problem: Exception) -> None:
        if isinstance(problem, _REFUSALS):
            self.refusal = problem
            if not self.bootstrapped:
                self.close()
