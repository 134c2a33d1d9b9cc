"""C{/healthz} and C{/readyz}."""

from __future__ import annotations

from pcapsvc.core.role import Role
from pcapsvc.settings.secret import Secret
from pcapsvc.sources.http.tokens import Token
from pcapsvc.testing import MemorySink, MemorySource
from pcapsvc.testing_packets import MemoryPacketSystem
from pcapsvc.web.health import Health, Readiness
from tests.unit.http_case import HTTPTestCase

TOKENS = (
    Token(secret=Secret("a-token-to-read"), roles=frozenset({Role.READ})),
    Token(secret=Secret("a-token-to-capture"), roles=frozenset({Role.CAPTURE})),
)


class HealthTests(HTTPTestCase):
    """The process answers."""

    def test_answer(self) -> None:
        """It does."""
        self.source.root.putChild(b"healthz", Health())
        response = self.ask("GET", "/healthz")
        self.assertEqual((response.code, response.content), (200, {"status": "ok"}))
        self.assertEqual(self.ask("HEAD", "/healthz").code, 200)


class ReadinessCase(HTTPTestCase):
    """A node that is ready."""

    def setUp(self) -> None:
        """One of two sources is connected."""
        super().setUp()
        self.host = MemoryPacketSystem("mem0")
        self.is_open = True
        self.one, self.two = MemorySource(MemorySink(), name="one"), MemorySource(MemorySink(), name="two")
        for source in (self.one, self.two):
            source.startService()
        self.one.connect()
        readiness = Readiness(
            self.clock,
            self.host,
            is_open=lambda: self.is_open,
            sources={"one": self.one, "two": self.two},
        )
        self.source.root.putChild(b"readyz", readiness)


class ReadinessTests(ReadinessCase):
    """The node can do its work, or everything that is in the way is listed."""

    def reasons(self) -> list[str]:
        """Why it is not ready."""
        response = self.ask("GET", "/readyz")
        self.assertEqual(response.code, 503)
        self.assertEqual(response.content["type"], "/pcapsvc/problems/not-ready")
        reasons: list[str] = response.content["reasons"]
        return reasons

    def test_ready(self) -> None:
        """One connected source is enough."""
        response = self.ask("GET", "/readyz")
        self.assertEqual((response.code, response.content), (200, {"status": "ok"}))

    def test_no_source(self) -> None:
        """If no source is connected, each says why."""
        self.one.lose("refused")
        self.assertEqual(
            self.reasons(),
            ["one is not connected: refused", "two is not connected: no attempt has succeeded yet"],
        )

    def test_no_permission(self) -> None:
        """Without the permission to capture it is not ready."""
        self.host.problem = PermissionError(1, "Operation not permitted")
        self.assertEqual(self.reasons(), ["no permission to capture: the daemon needs CAP_NET_RAW"])

    def test_no_packet_sockets(self) -> None:
        """Nor on a system that has no packet sockets; that is looked at again after some seconds."""
        self.host.problem = OSError(97, "Address family not supported by protocol")
        [reason] = self.reasons()
        self.assertIn("Address family not supported", reason)
        self.host.problem = None
        self.clock.advance(4)
        self.assertEqual(self.reasons(), [reason])
        self.clock.advance(2)
        self.assertEqual(self.ask("GET", "/readyz").code, 200)

    def test_everything(self) -> None:
        """All reasons are given at once."""
        self.is_open = False
        self.host.problem = PermissionError(1, "Operation not permitted")
        self.one.lose("refused")
        self.assertEqual(len(self.reasons()), 4)
        self.assertIn("the daemon is starting or stopping", self.reasons())


class PublicTests(ReadinessCase):
    """Everybody may ask how a node is, but only those who may read learn more."""

    tokens = TOKENS

    def test_reasons(self) -> None:
        """The reasons are for those who may read."""
        self.source.root.putChild(b"healthz", Health())
        self.assertEqual((self.ask("GET", "/healthz").code, self.ask("GET", "/readyz").code), (200, 200))
        self.one.lose("refused by 192.0.2.1")
        for token, is_told in ((None, False), ("a-token-to-capture", False), ("a-token-to-read", True)):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            response = self.ask("GET", "/readyz", **headers)
            self.assertEqual((response.code, "reasons" in response.content), (503, is_told), token)
            self.assertEqual("192.0.2.1" in str(response.content), is_told)
