"""Webhooks: their configuration, what they send, and what answers mean to them."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from zope.interface.verify import verifyObject

from pcapsvc.core.compression import compression_warnings, compressions
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.http_url import parse_http_url
from pcapsvc.destinations.webhook.destination import Webhook
from pcapsvc.destinations.webhook.settings import WebhookSettings
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.testing import event_factory, run_now
from pcapsvc.threads import NotRunning
from tests.unit.cloudshark_case import QuietSite
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.event_schema import problems
from tests.unit.settings_case import LEAST, SettingsTestCase

SECRET = "hunter2hunter2"


class Hook(Resource):
    """Answers with a status, and keeps what it gets."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status = 204
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[Request, bytes]] = []

    def render_POST(self, request: Request) -> bytes:
        self.requests.append((request, request.content.read()))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return b"" if self.status == 204 else b"it says s3cr3t packets"


class WebhookTests(TestCase):
    """L{Webhook}, with a server on the loopback."""

    def setUp(self) -> None:
        self.hook = Hook()
        port = reactor.listenTCP(0, QuietSite(self.hook), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.base = f"http://127.0.0.1:{port.getHost().port}"
        self.content = MemfdContent(b"packets" * 100_000)
        self.addCleanup(self.content.close)
        self.data = b"packets" * 100_000

    def make(self, path: str = "/a/s3cr3t?b=c", **changes: Any) -> Webhook:
        values: dict[str, Any] = {
            "run_in_thread": run_now,
            "sends_captures": True,
            "events": event_factory(),
            "node": "web 1",
            "headers": {"Authorization": "Bearer x", "X-Tenant": "acme"},
        }
        return Webhook(reactor, url=parse_http_url(self.base + path), **{**values, **changes})

    def artifact(self, **changes: Any) -> Any:
        artifact = make_artifact(self.content, **{"tags": "customer:Zoë,node:web 1", **changes})
        return replace(artifact, started=1_700_000_000.25)

    async def refused(self, webhook: Webhook) -> DestinationError:
        error = await self.assertFailure(webhook.store(self.artifact()), DestinationError)
        assert isinstance(error, DestinationError)
        self.assertNotIn("s3cr3t", str(error))
        self.assertTrue(self.content.all_closed)
        return error

    def test_interface(self) -> None:
        """It is a destination, called webhook, without options."""
        webhook = self.make()
        self.assertTrue(verifyObject(IDestination, webhook))
        self.assertEqual((webhook.name, [webhook.route({"a": 1})]), ("webhook", list(webhook.routes)))
        self.assertEqual([str(each) for each in webhook.check({"a": 1})], ["a: is not a known key"])

    async def test_capture(self) -> None:
        """A capture is posted as it is, to the URL as it is, with our headers and the operator's."""
        receipt = await self.make(secret=SECRET).store(self.artifact())
        self.assertEqual((receipt.destination, receipt.location), ("webhook", self.base))
        [(request, body)] = self.hook.requests
        self.assertEqual((request.uri, body), (b"/a/s3cr3t?b=c", self.data))
        signature = hmac.new(SECRET.encode(), self.data, hashlib.sha256).hexdigest()
        for name, value in {
            "host": self.base.removeprefix("http://"),
            "content-type": "application/vnd.tcpdump.pcap",
            "content-length": str(len(self.data)),
            "content-disposition": 'attachment; filename="web1-eth0-1700000000-abc.pcap"',
            "idempotency-key": "abc-webhook",
            "x-pcapsvc-capture": "abc",
            "x-pcapsvc-node": "web 1",
            "x-pcapsvc-tags": "customer:Zo%C3%AB,node:web 1",
            "x-pcapsvc-signature-256": f"sha256={signature}",
            "authorization": "Bearer x",
            "x-tenant": "acme",
        }.items():
            self.assertEqual(request.getHeader(name), value, name)
        self.assertTrue(self.content.all_closed)

    async def test_event(self) -> None:
        """An event says what file there is. It is the same each time, and signed."""
        webhook = self.make("", sends_captures=False, secret=SECRET)
        for _ in range(2):
            await webhook.store(self.artifact())
        [(request, body), (other, again)] = self.hook.requests
        self.assertEqual((request.uri, body, other.getAllHeaders()), (b"/", again, request.getAllHeaders()))
        self.assertEqual(request.getHeader("content-type"), "application/cloudevents+json; charset=utf-8")
        document = json.loads(body)
        self.assertEqual(problems(document), [])
        self.assertEqual((document["type"], document["subject"]), ("pcapsvc.capture.file", "abc"))
        self.assertEqual((document["id"], document["time"]), ("abc-webhook", "2023-11-14T22:13:20.250000Z"))
        self.assertEqual(document["data"]["file"], "web1-eth0-1700000000-abc.pcap")
        self.assertEqual(document["data"]["bytes"], len(self.data))
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        self.assertEqual(request.getHeader("x-pcapsvc-signature-256"), f"sha256={signature}")
        self.assertIsNone(request.getHeader("content-disposition"))
        self.assertEqual(self.content.opened, [])

    async def test_unsigned(self) -> None:
        """Without a secret, nothing is signed."""
        await self.make().store(self.artifact())
        self.assertIsNone(self.hook.requests[0][0].getHeader("x-pcapsvc-signature-256"))

    async def test_hostile_texts(self) -> None:
        """Tags and names can't end a header."""
        await self.make(node="a\r\nX: y").store(self.artifact(tags="a\r\nX: y,\ud800"))
        [(request, _)] = self.hook.requests
        self.assertIsNone(request.getHeader("x"))
        self.assertEqual(request.getHeader("x-pcapsvc-tags"), "a%0D%0AX: y,%3F")

    async def test_answers(self) -> None:
        """2xx is a success; redirects and what may pass are retryable; no words of a server are repeated."""
        for self.hook.status in (200, 201, 202, 204, 299):
            await self.make().store(self.artifact())
        for self.hook.status in (301, 307, 408, 409, 425, 429, 500, 502, 503, 599):
            self.assertTrue((await self.refused(self.make())).retryable, self.hook.status)
        for self.hook.status in (400, 401, 403, 404, 410, 413, 501, 505):
            self.assertFalse((await self.refused(self.make())).retryable, self.hook.status)
        self.hook.status = 404
        self.assertEqual(str(await self.refused(self.make())), f"{self.base}: answered 404: Not Found")

    async def test_asked_to_wait(self) -> None:
        """If the server asks to wait, the error says for how long."""
        self.hook.status, self.hook.headers = 503, {"retry-after": "17"}
        self.assertEqual((await self.refused(self.make())).retry_after_seconds, 17.0)

    async def test_no_threads(self) -> None:
        """Without threads, nothing is left open."""
        stopped: Any = lambda *_: fail(NotRunning("the threads are not running"))  # noqa: E731
        error = await self.refused(self.make(secret=SECRET, run_in_thread=stopped))
        self.assertTrue(error.retryable)

    async def test_cancelled(self) -> None:
        """One that is cancelled while it is signed closes the capture once that is done."""
        waiting: list[tuple[Deferred[Any], Any]] = []

        def later(function: Any, *arguments: Any) -> Deferred[Any]:
            waiting.append((Deferred(), lambda: function(*arguments)))
            return waiting[-1][0]

        stored = self.make(secret=SECRET, run_in_thread=later).store(self.artifact())
        self.assertEqual(len(waiting), 1)
        stored.cancel()
        stored.addErrback(lambda _: None)
        for _, run in waiting:
            run()
        self.assertTrue(self.content.all_closed)
        self.assertEqual(self.hook.requests, [])


class WebhookSettingsTests(SettingsTestCase):
    """C{[webhook]}."""

    def webhook(self, text: str) -> WebhookSettings:
        return self.load(f"{LEAST}[webhook]\n{text}").section(WebhookSettings)

    def test_defaults(self) -> None:
        """It is off; with a URL, it sends captures, not compressed."""
        self.assertFalse(self.webhook("").is_enabled())
        found = self.webhook("upload = true\nurl = 'https://h/x?y=z'")
        self.assertTrue(found.is_enabled())
        self.assertEqual((found.send, found.verify, found.headers), ("capture", True, ()))
        self.assertEqual(compressions(None, {"w": found.compression()}), {"w": "none"})

    def test_url(self) -> None:
        """Posting needs a URL, and only one of http or https will do. It is not shown."""
        problem = self.only_problem(f"{LEAST}[webhook]\nupload = true")
        self.assertEqual(problem, "webhook.upload: needs webhook.url or webhook.urlfile")
        for url in ("https://u:hunter2@h/a", "https://h./a", "https://h/a b", "https://h/{id}"):
            problem = self.only_problem(f"{LEAST}[webhook]\nurl = '{url}?sig=hunter2'")
            self.assertTrue(problem.startswith("webhook.url: "), problem)
            self.assertNotIn("hunter2", problem)

    def test_headers(self) -> None:
        """Headers come from a file. Values that are long enough are secrets; nothing of it is shown."""
        path = self.file("# ours\n\nAuthorization: Bearer hunter2hunter2\nX-Env:  prod \n")
        found = self.webhook(f"headersfile = '{path}'")
        self.assertEqual(
            [(each.name, each.text) for each in found.headers],
            [("Authorization", "Bearer hunter2hunter2"), ("X-Env", "prod")],
        )
        self.assertNotIn("hunter2", repr(found))

    def test_wrong_headers(self) -> None:
        """Each line that can't be used is a problem, which shows nothing of it."""
        for text, rule in (
            ("hunter2hunter2", "must have NAME: VALUE in ASCII on each line, but line 1 is something else"),
            ("A: b\nHost: hunter2hunter2", "must not have the header of line 2, which is the daemon's own"),
            ("X-Pcapsvc-Tags: hunter2hunter2", "must not have the header of line 1"),
            ("A: b\na: hunter2hunter2", "must have each header once, but line 2 has one again"),
            ("A: hunter2\u00e9hunter2", "line 1 is something else"),
            (f"A: {'hunter2' * 1000}", "line 1 is something else"),
        ):
            path = self.file(text)
            problem = self.only_problem(f"{LEAST}[webhook]\nheadersfile = '{path}'")
            self.assertIn(f'webhook.headersfile = "{path}": ', problem)
            self.assertIn(rule, problem)
            self.assertNotIn("hunter2", problem.replace(path, ""))
        many = "".join(f"A{number}: b\n" for number in range(33))
        self.assertIn(
            "up to 32 headers", self.only_problem(f"{LEAST}[webhook]\nheadersfile = '{self.file(many)}'")
        )

    def test_indifferent(self) -> None:
        """If only events are sent, no file is compressed, whatever a request says; nor is there a warning."""
        choice = {"w": self.webhook("send = 'event'\ncompress = 'zstd'").compression()}
        for asked in (None, "gzip", "zstd", "none"):
            self.assertEqual(compressions(asked, choice), {"w": "none"})
            self.assertEqual([*compression_warnings(asked, choice)], [])


class NoHeadersTests(SynchronousTestCase):
    """What is always there."""

    def test_own_traffic(self) -> None:
        """Nothing is connected to, and nothing looked up, by the constructor."""
        Webhook(
            None,
            run_in_thread=lambda *_: self.fail("something runs"),
            url=parse_http_url("https://h/"),
            sends_captures=True,
            events=event_factory(),
            node="n",
            headers={},
        )
