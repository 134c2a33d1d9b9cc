"""The destinations against servers of their own processes."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, BinaryIO

import botocore.session
from twisted.internet import defer, reactor, task
from twisted.trial.unittest import TestCase

from pcapsvc.core.errors import DestinationError
from pcapsvc.core.result import Receipt
from pcapsvc.destinations.cloudshark.destination import CloudShark
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.destinations.s3.multipart import Sizes
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.threads import Threads
from peers.certificates import LABELS, labelled
from peers.cloudshark import CloudSharkServer, Shown, accept, answer, hang, refuse, reset, slow
from peers.s3 import shared_loader, shared_server
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact

shared_peer = "S3 server"

_LARGE_BYTES = 60_000_000
# By how much the process may grow while it uploads that.
_MOST_GROWN_BYTES = 6_000_000


class DestinationCase(TestCase):
    """With a content."""

    def setUp(self) -> None:
        self.data = os.urandom(500_000)
        self.content = MemfdContent(self.data)
        self.addCleanup(self.content.close)

    async def all_closed(self, content: MemfdContent | None = None) -> None:
        """Wait until all readers are closed, which happens in a thread."""
        while not (content or self.content).all_closed:
            await task.deferLater(reactor, 0.01)

    async def refused(self, stored: defer.Deferred[Receipt]) -> DestinationError:
        error = await self.assertFailure(stored, DestinationError)
        assert isinstance(error, DestinationError)
        await self.all_closed()
        return error


class CloudSharkTests(DestinationCase):
    """L{CloudShark}, over TLS."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)

    def serve(self, **kwargs: Any) -> CloudSharkServer:
        server = CloudSharkServer(**kwargs)
        self.addCleanup(server.stop)
        server.start()
        return server

    def make(self, server: CloudSharkServer, **changes: Any) -> CloudShark:
        values: dict[str, Any] = {
            "scheme": "https",
            "host": server.host,
            "port": server.port,
            "token": server.token,
            "timeout_seconds": 20,
            "verify": str(server.ca_file),
        }
        return CloudShark(reactor, run_in_thread=self.threads.run, **{**values, **changes})

    async def test_upload(self) -> None:
        """With the right certificates and token, a capture arrives byte for byte, with its tags."""
        server = self.serve()
        server.behave(accept("0a1b2c"))
        artifact = make_artifact(self.content, name="a.pcap", tags="customer:Zoë,node:web1")
        receipt = await self.make(server).store(artifact)
        self.assertEqual(receipt.location, f"https://localhost:{server.port}/captures/0a1b2c")
        [upload] = server.uploads()
        self.assertEqual((upload.filename, upload.content_type), ("a.pcap", "application/octet-stream"))
        self.assertEqual(upload.data, self.data)
        self.assertEqual(upload.fields, {"additional_tags": "customer:Zoë,node:web1"})
        self.assertTrue(upload.has_length)
        await self.all_closed()

    async def test_labels(self) -> None:
        """The server is verified with a file whose certificates have any of their labels."""
        server = self.serve()
        for label in LABELS:
            await self.make(server, verify=str(labelled(server.ca_file, label))).store(
                make_artifact(self.content)
            )
        self.assertEqual(len(server.uploads()), len(LABELS))

    async def test_by_address(self) -> None:
        """A certificate may be for an address."""
        server = self.serve()
        await self.make(server, host="127.0.0.1").store(make_artifact(self.content))

    async def test_certificate_of_a_stranger(self) -> None:
        """
        A certificate that the system's authorities did not sign is refused, for good; so is
        one that those of the file did not sign; the token is sent to neither.
        """
        for server, verify in (
            (self.serve(), True),
            (strange := self.serve(shown=Shown.UNTRUSTED), str(strange.ca_file)),
        ):
            error = await self.refused(self.make(server, verify=verify).store(make_artifact(self.content)))
            self.assertFalse(error.retryable)
            self.assertIn("TLS: certificate verify failed", str(error))
            self.assertEqual(server.uploads(), [])

    async def test_certificate_of_another_host(self) -> None:
        """A certificate for another host is not retryable."""
        server = self.serve(shown=Shown.WRONG_HOST)
        error = await self.refused(self.make(server).store(make_artifact(self.content)))
        self.assertFalse(error.retryable)
        self.assertIn("the certificate is not for localhost", str(error))
        self.assertEqual(server.uploads(), [])

    async def test_unverified(self) -> None:
        """If the operator says so, any certificate is accepted."""
        server = self.serve(shown=Shown.UNTRUSTED)
        await self.make(server, verify=False).store(make_artifact(self.content))

    async def test_wrong_token(self) -> None:
        """A wrong token is not retryable, and not in the error."""
        server = self.serve()
        error = await self.refused(self.make(server, token="wr0ng").store(make_artifact(self.content)))
        self.assertFalse(error.retryable)
        self.assertIn("answered 404: no such token", str(error))
        self.assertNotIn("wr0ng", str(error))

    async def test_behaviours(self) -> None:
        """Refusals, rubbish, resets and silence are different errors."""
        server = self.serve()
        patient, impatient = self.make(server), self.make(server, timeout_seconds=2)
        for behaviour, words, retryable in (
            (refuse(400, "Bad capture"), "answered 400: Bad capture", False),
            (refuse(503, "Busy"), "answered 503: Busy", True),
            (answer("<html>"), "answered 200: without the id", True),
            (reset(), "", True),
            (reset(100_000), "", True),
            (hang(), "timed out after 2 s", True),
        ):
            server.behave(behaviour)
            destination = impatient if "timed out" in words else patient
            error = await self.refused(destination.store(make_artifact(self.content)))
            self.assertIn(words, str(error))
            self.assertEqual(error.retryable, retryable, str(error))
            self.assertNotIn(server.token, str(error))

    async def test_timeout_while_sending(self) -> None:
        """A server that reads too slowly is a time-out."""
        server = self.serve()
        server.behave(slow(100_000))
        large = MemfdContent(zeros=_LARGE_BYTES)
        self.addCleanup(large.close)
        stored = self.make(server, timeout_seconds=0.5).store(make_artifact(large))
        self.assertIn("timed out after 0.5 s", str(await self.refused(stored)))
        await self.all_closed(large)

    async def test_memory(self) -> None:
        """60 MB are uploaded without holding them."""
        server = self.serve()
        destination = self.make(server)
        await destination.store(make_artifact(self.content))
        large = MemfdContent(zeros=_LARGE_BYTES)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            await destination.store(make_artifact(large))
        self.assertLess(memory.grown_bytes, _MOST_GROWN_BYTES)


class S3Tests(DestinationCase):
    """L{S3}, with a server that checks signatures."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        self.patch(botocore.session, "create_loader", shared_loader)
        self.server = shared_server()
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)

    def make(self, **changes: Any) -> S3:
        values: dict[str, Any] = {
            "access_id": self.server.access_key,
            "access_key": self.server.secret_key,
            "endpoint": self.server.endpoint,
            "bucket": self.server.bucket,
            "region": self.server.region,
        }
        return S3(run_in_thread=self.threads.run, run_elsewhere=self.threads.run, **{**values, **changes})

    async def test_put(self) -> None:
        """A capture arrives byte for byte, with its tags, and private."""
        artifact = make_artifact(self.content, name="a.pcap", tags="customer:Zoë, 50%,node:web1")
        receipt = await self.make().store(artifact)
        self.assertEqual(receipt.location, f"s3://{self.server.bucket}/a.pcap")
        data, metadata, head = self.server.get("a.pcap")
        self.assertEqual(data, self.data)
        self.assertEqual(metadata, {"tags": "customer:Zo%C3%AB, 50%25,node:web1"})
        self.assertNotIn("ServerSideEncryption", head)
        self.assertEqual([grant["Permission"] for grant in self.server.grants("a.pcap")], ["FULL_CONTROL"])

    async def test_options(self) -> None:
        """Folder, ACL and encryption are as configured; the signature holds with any of them."""
        await self.make(folder="x/y", acl="public-read", encryption=True).store(
            make_artifact(self.content, name="a.pcap", tags="  a   b, " + "ü" * 3000)
        )
        data, metadata, head = self.server.get("x/y/a.pcap")
        self.assertEqual(data, self.data)
        self.assertEqual(metadata, {"tags": "%20%20a   b"})
        self.assertEqual(head["ServerSideEncryption"], "AES256")
        permissions = {grant["Permission"] for grant in self.server.grants("x/y/a.pcap")}
        self.assertEqual(permissions, {"FULL_CONTROL", "READ"})

    async def test_parts(self) -> None:
        """More than 100 MB arrive in parts, byte for byte, with all that belongs to them, and aren't held."""
        data = os.urandom(1 << 20) * 112
        large = MemfdContent(data)
        self.addCleanup(large.close)
        destination = self.make(storage_class="STANDARD_IA", encryption=True, acl="public-read")
        # What is imported for it stays in memory.
        await destination.store(make_artifact(self.content))
        with PeakMemory() as memory:
            await destination.store(make_artifact(large, name="a.pcap", tags="customer:Zoë"))
        self.assertLess(memory.grown_bytes, _MOST_GROWN_BYTES)
        found, metadata, head = self.server.get("a.pcap")
        self.assertTrue(found == data)
        self.assertEqual(metadata, {"tags": "customer:Zo%C3%AB"})
        self.assertEqual((head["StorageClass"], head["ServerSideEncryption"]), ("STANDARD_IA", "AES256"))
        self.assertTrue(head["ETag"].endswith('-7"'), head["ETag"])
        self.assertEqual(
            {grant["Permission"] for grant in self.server.grants("a.pcap")}, {"FULL_CONTROL", "READ"}
        )
        self.assertEqual(self.server.uploads(), [])
        self.server.delete("a.pcap")

    async def test_made_parts(self) -> None:
        """A file that is made while it is read is made once, whatever is done with each of its parts."""
        source, made = MemfdContent(os.urandom(12 << 20)), 0
        self.addCleanup(source.close)

        def make(file: BinaryIO) -> Generator[bytes]:
            nonlocal made
            made += 1
            while piece := file.read(300_000):
                yield piece

        sizes = Sizes(single_bytes=1000, held_part_bytes=5 << 20)
        content = GeneratedFile(source, make, source.size)
        await self.make(sizes=sizes).store(make_artifact(content, name="a.pcap"))
        found, _, head = self.server.get("a.pcap")
        with source.open() as file:
            self.assertTrue(found == file.read())
        self.assertTrue(head["ETag"].endswith('-3"'), head["ETag"])
        self.assertEqual(made, 1)
        self.server.delete("a.pcap")

    async def test_kms(self) -> None:
        """KMS encrypts with the key that is configured, or that the request names, whole and in parts."""
        sizes = Sizes(single_bytes=1000, part_bytes=5 << 20)
        for name, changes in (("whole", {}), ("parts", {"sizes": sizes})):
            destination = self.make(kms_key_id="alias/captures", storage_class="GLACIER_IR", **changes)
            await destination.store(make_artifact(self.content, name=f"{name}.pcap"))
            asked = {"kmskeyid": "1234abcd", "storageclass": "STANDARD"}
            await destination.store(make_artifact(self.content, name=f"{name}-2.pcap", **asked))
            for suffix, key, kind in (("", "alias/captures", "GLACIER_IR"), ("-2", "1234abcd", None)):
                found, _, head = self.server.get(f"{name}{suffix}.pcap")
                self.assertEqual(found, self.data)
                self.assertEqual((head["ServerSideEncryption"], head["SSEKMSKeyId"]), ("aws:kms", key))
                self.assertEqual(head.get("StorageClass"), kind)

    async def test_folder(self) -> None:
        """What placeholders stand for is in the key, from the configuration as from the request."""
        destination = self.make(folder="/pcaps/{node}/{date}/{{x}}/")
        artifact = make_artifact(self.content, name="web1-eth0-1700000000-abc.pcap")
        await destination.store(artifact)
        await destination.store(make_artifact(self.content, folder="{interface}/{hour}", name="a-b-1-c.pcap"))
        self.assertEqual(
            sorted(self.server.keys()),
            ["b/00/a-b-1-c.pcap", "pcaps/web1/2023-11-14/{x}/web1-eth0-1700000000-abc.pcap"],
        )

    async def test_longest_tags(self) -> None:
        """As many tags as possible are accepted."""
        for tags in ("x" * 3000, "ü" * 3000, ",".join(["tag"] * 1000)):
            await self.make().store(make_artifact(self.content, tags=tags))

    async def test_without_region(self) -> None:
        """A store of one's own needs no region."""
        await self.make(region=None).store(make_artifact(self.content, name="a.pcap"))
        self.assertEqual(self.server.keys(), ["a.pcap"])

    async def test_wrong_secret(self) -> None:
        """A wrong secret key is not retryable, and not in the error."""
        wrong = "wr0ng/" + "x" * 34
        error = await self.refused(self.make(access_key=wrong).store(make_artifact(self.content)))
        self.assertFalse(error.retryable)
        self.assertIn("SignatureDoesNotMatch", str(error))
        self.assertNotIn(wrong, str(error))
        self.assertEqual(self.server.keys(), [])

    async def test_missing_bucket(self) -> None:
        """A missing bucket is not retryable."""
        error = await self.refused(self.make().store(make_artifact(self.content, bucket="missing")))
        self.assertFalse(error.retryable)
        self.assertIn("NoSuchBucket", str(error))

    async def test_overrides(self) -> None:
        """What a request says goes before what is configured."""
        self.server.make_bucket("other")
        destination = self.make(bucket="missing", endpoint="http://127.0.0.1:1")
        asked = {"bucket": "other", "endpoint": self.server.endpoint.removeprefix("https://"), "folder": "f"}
        await destination.store(make_artifact(self.content, name="a.pcap", **asked))
        self.assertEqual(self.server.keys("other"), ["f/a.pcap"])

    async def test_memory(self) -> None:
        """60 MB are put without holding them."""
        destination = self.make()
        await destination.store(make_artifact(self.content))
        large = MemfdContent(zeros=_LARGE_BYTES)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            await destination.store(make_artifact(large))
        self.assertLess(memory.grown_bytes, _MOST_GROWN_BYTES)
