"""URLs that requests supply, against servers of their own processes."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.destinations.puturl.destination import PutUrlDestination
from pcapsvc.threads import Threads
from peers.put import PutServer, answer, store
from peers.s3 import shared_server
from tests.integration.test_destinations import DestinationCase
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact

_LARGE_BYTES = 60_000_000
# By how much the process may grow while it puts that.
_MOST_GROWN_BYTES = 6_000_000


class PutUrlCase(DestinationCase):
    """With threads."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)

    def make(self, *patterns: str, **changes: Any) -> PutUrlDestination:
        values: dict[str, Any] = {"insecure": False, "ca_file": None, "node": "web 1"}
        return PutUrlDestination(
            reactor,
            run_in_thread=self.threads.run,
            patterns=[*map(parse_pattern, patterns)],
            **{**values, **changes},
        )

    def artifact(self, url: str, content: MemfdContent | None = None) -> Any:
        return make_artifact(content or self.content, destination="puturl", puturl=url)


class SignedUrlTests(PutUrlCase):
    """URLs for S3, with a server that checks their signatures."""

    def setUp(self) -> None:
        super().setUp()
        self.server = shared_server()
        self.host = self.server.endpoint.removeprefix("http://")

    async def put(self, url: str) -> str:
        destination = self.make(self.host, insecure=True)
        self.assertEqual([*destination.check({"puturl": url})], [])
        return (await destination.store(self.artifact(url))).location

    async def test_put(self) -> None:
        """A capture is put byte for byte, with its type; the key may have any characters."""
        for key in ("a.pcap", "in box/ä+b;c=1/%2e$&,:@'().pcap"):
            location = await self.put(self.server.presigned(key))
            self.assertTrue(location.startswith(f"{self.server.endpoint}/{self.server.bucket}/"))
            self.assertNotIn("?", location)
            data, _, head = self.server.get(key)
            self.assertEqual(data, self.data)
            self.assertEqual(head["ContentType"], "application/vnd.tcpdump.pcap")

    async def test_again(self) -> None:
        """Another time leaves one object."""
        url = self.server.presigned("a.pcap")
        await self.put(url)
        await self.put(url)
        self.assertEqual(self.server.keys(), ["a.pcap"])

    async def test_signed_type(self) -> None:
        """The type may be signed, if it is the one that is sent."""
        await self.put(self.server.presigned("a.pcap", ContentType="application/vnd.tcpdump.pcap"))
        error = await self.refused(
            self.make(self.host, insecure=True).store(
                self.artifact(self.server.presigned("b.pcap", ContentType="text/plain"))
            )
        )
        self.assertIn("answered 403: the signature in the URL is not valid for this request", str(error))

    async def test_expired(self) -> None:
        """A URL that has expired says so, and is not retryable."""
        url = self.server.presigned("a.pcap", seconds=-1)
        error = await self.refused(self.make(self.host, insecure=True).store(self.artifact(url)))
        self.assertFalse(error.retryable)
        self.assertEqual(str(error), f"{self.server.endpoint}: answered 403: the URL has expired")

    async def test_altered(self) -> None:
        """A URL for another object is refused."""
        url = self.server.presigned("a.pcap").replace("a.pcap", "b.pcap")
        error = await self.refused(self.make(self.host, insecure=True).store(self.artifact(url)))
        self.assertFalse(error.retryable)
        self.assertIn("SignatureDoesNotMatch", str(error))
        self.assertEqual(self.server.keys(), [])

    async def test_missing_bucket(self) -> None:
        """A missing bucket is named as what is wrong."""
        url = self.server.presigned("a.pcap", Bucket="missing")
        error = await self.refused(self.make(self.host, insecure=True).store(self.artifact(url)))
        self.assertIn("answered 404: what the URL names doesn't exist (NoSuchBucket)", str(error))


class WebDavTests(PutUrlCase):
    """An HTTPS server that stores what is put to it."""

    def setUp(self) -> None:
        super().setUp()
        self.server = PutServer()
        self.addCleanup(self.server.stop)
        self.server.start()

    def patterns(self) -> tuple[str, ...]:
        port = self.server.port
        return (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")

    def trusting(self, *patterns: str) -> PutUrlDestination:
        return self.make(*(patterns or self.patterns()), ca_file=str(self.server.ca_file))

    async def test_put(self) -> None:
        """A capture arrives byte for byte, where the placeholders say; and again, in place of the first."""
        url = self.server.url("dav/{node}/{id}.pcap")
        for _ in range(2):
            receipt = await self.trusting().store(self.artifact(url))
            self.assertEqual(receipt.location, f"https://localhost:{self.server.port}/dav/web%201/abc.pcap")
        self.assertEqual(self.server.files(), {"/dav/web%201/abc.pcap": self.data})
        [first, second] = self.server.requests()
        self.assertEqual(
            (first.method, first.path),
            (
                "PUT",
                url.partition(str(self.server.port))[2].replace("{node}", "web%201").replace("{id}", "abc"),
            ),
        )
        self.assertEqual(
            first.headers,
            {
                "host": f"localhost:{self.server.port}",
                "content-type": "application/vnd.tcpdump.pcap",
                "content-length": str(len(self.data)),
                "connection": "close",
            },
        )
        self.assertEqual(first.headers, second.headers)
        await self.all_closed()

    async def test_azure(self) -> None:
        """A shared access signature of Azure has the header that Azure needs."""
        url = self.server.url("box/a.pcap") + "&sv=2024-11-04&sr=c&sp=cw"
        await self.trusting().store(self.artifact(url))
        self.assertEqual(self.server.requests()[0].headers["x-ms-blob-type"], "BlockBlob")

    async def test_untrusted(self) -> None:
        """The certificate is verified; the URL is not sent to a stranger."""
        error = await self.refused(self.make(*self.patterns()).store(self.artifact(self.server.url("a"))))
        self.assertFalse(error.retryable)
        self.assertIn("TLS: certificate verify failed", str(error))
        self.assertEqual(self.server.requests(), [])

    async def test_private_address(self) -> None:
        """A name whose address is not public is refused, if no pattern names the address."""
        error = await self.refused(
            self.trusting(f"localhost:{self.server.port}", "*:*").store(self.artifact(self.server.url("a")))
        )
        self.assertFalse(error.retryable)
        self.assertIn("has an address that is not public, and that puturl.allow doesn't name", str(error))
        self.assertEqual(self.server.requests(), [])

    async def test_echo(self) -> None:
        """A server that repeats the query has it repeated nowhere."""
        self.server.behave(
            answer(400, f"<Code>{self.server.signature}</Code><Message>{self.server.signature}</Message>"),
            answer(403, x_ms_error_code=self.server.signature),
            answer(302, Location=self.server.url("b")),
        )
        for _ in range(3):
            error = await self.refused(self.trusting().store(self.artifact(self.server.url("a"))))
            self.assertNotIn(
                self.server.signature, str(error) + repr(error.__cause__) + repr(error.__context__)
            )

    async def test_proof(self) -> None:
        """200 without a page is enough; the checksum of something else isn't."""
        destination = self.trusting()
        self.server.behave(store(status=200))
        await destination.store(self.artifact(self.server.url("a")))
        wrong = "0" * 32
        for headers in (
            {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="},
            {"x-goog-hash": "crc32c=AAAAAA==, md5=AAAAAAAAAAAAAAAAAAAAAA=="},
            {"ETag": f'"{wrong}"', "x-amz-request-id": "1"},
        ):
            self.server.behave(store(headers=headers))
            error = await self.refused(destination.store(self.artifact(self.server.url("a"))))
            self.assertTrue(error.retryable)
            self.assertIn("the checksum of something else", str(error))
        for headers in (
            {"ETag": f'"{wrong}"'},
            {"ETag": f'"{wrong}"', "x-amz-request-id": "1", "x-amz-server-side-encryption": "aws:kms"},
            {"ETag": '"0x8DABC"', "x-ms-request-id": "1"},
        ):
            self.server.behave(store(headers=headers))
            await destination.store(self.artifact(self.server.url("a")))

    async def test_memory(self) -> None:
        """60 MB are put without holding them."""
        destination = self.trusting()
        await destination.store(self.artifact(self.server.url("a")))
        large = MemfdContent(zeros=_LARGE_BYTES)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            await destination.store(self.artifact(self.server.url("b"), large))
        self.assertLess(memory.grown_bytes, _MOST_GROWN_BYTES)
