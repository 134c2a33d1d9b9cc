"""Connections to Kafka, without a broker."""

from __future__ import annotations

import socket
import threading

from kafka.errors import KafkaTimeoutError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.sources.kafka import connection
from pcapsvc.sources.kafka.connection import Connection

_PATIENCE_SECONDS = 180.0


class HandshakeTests(SynchronousTestCase):
    """A server that accepts connections, and says nothing when TLS begins."""

    def test_silent(self) -> None:
        """It is given up, and the connection closed."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        # As if it had been well a moment ago.
        self.patch(connection, "reach_any", lambda servers, context: None)
        opening = Connection(
            [f"127.0.0.1:{listener.getsockname()[1]}"],
            "topic",
            group=None,
            client_id="test",
            security=KafkaSecurity(security_protocol="SSL"),
            bootstrap_seconds=0.3,
        )
        problems: list[BaseException] = []

        def open_it() -> None:
            try:
                opening.open()
            except BaseException as problem:  # noqa: BLE001 - it is looked at below
                problems.append(problem)

        thread = threading.Thread(target=open_it, daemon=True)
        thread.start()
        with listener.accept()[0] as accepted:
            thread.join(_PATIENCE_SECONDS)
            self.assertEqual([type(problem) for problem in problems], [KafkaTimeoutError])
            accepted.settimeout(_PATIENCE_SECONDS)
            while accepted.recv(65536):
                """The beginning of TLS, and then the end of the connection."""
