"""Captures to S3, with a server in the same process that takes anything."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import boto3.session
import botocore.session
from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.s3 import clients
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.destinations.s3.options import STORAGE_CLASSES
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.s3_case import SECRET, S3Case, refusal

#: Values that a request may give.
GOOD = {
    "folder": "{node}/{{x}}",
    "storageclass": "GLACIER",
    "kmskeyid": "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
}


class S3Tests(S3Case):
    """L{S3}."""

    def test_interface(self) -> None:
        """It is a destination, called s3, and its repr says nothing."""
        destination = self.make()
        self.assertTrue(verifyObject(IDestination, destination))
        self.assertEqual(destination.name, "s3")
        self.assertNotIn(SECRET, repr(destination))

    def test_routes(self) -> None:
        """The configured endpoint is one route, however a request spells it; all others are another."""
        amazon, own = self.make(endpoint=None), self.make(endpoint="http://s3.example.com")
        routes: list[tuple[S3, dict[str, Any], bool]] = [
            (own, {}, True),
            (own, {"bucket": "b", "endpoint": "http://s3.example.com/"}, True),
            (own, {"endpoint": "s3.example.com"}, False),
            (own, {"endpoint": "http://"}, False),
            (own, {"endpoint": ""}, False),
            (amazon, {}, True),
            (amazon, {"endpoint": ""}, True),
            (amazon, {"endpoint": "s3.example.com"}, False),
            (amazon, {"endpoint": True}, False),
            (amazon, {"endpoint": ["x"]}, False),
        ]
        for destination, asked, is_configured in routes:
            self.assertEqual(destination.routes.index(destination.route(asked)) == 0, is_configured, asked)

    async def test_put(self) -> None:
        """An object is put by path-style address, byte for byte, with its tags; no ACL, no encryption."""
        receipt = await self.make().store(make_artifact(self.content, name="a.pcap", tags="node:web1"))
        self.assertEqual((receipt.destination, receipt.location), ("s3", "s3://captures/a.pcap"))
        [(path, headers, body)] = self.server.requests
        self.assertEqual(path, "/captures/a.pcap")
        with self.content.open() as reader:
            self.assertEqual(body, reader.read())
        self.assertEqual(headers["x-amz-meta-tags"], "node:web1")
        self.assertIsNone(headers["x-amz-acl"])
        self.assertIsNone(headers["x-amz-server-side-encryption"])
        self.assertFalse([name for name in headers if "checksum" in name.lower()])
        self.assertTrue(self.content.all_closed)

    async def test_options(self) -> None:
        """The folder, ACL, encryption and region are as configured."""
        destination = self.make(folder="/a/b/", acl="public-read", encryption=True, region="eu-north-1")
        receipt = await destination.store(make_artifact(self.content, name="a.pcap"))
        self.assertEqual(receipt.location, "s3://captures/a/b/a.pcap")
        [(path, headers, _)] = self.server.requests
        self.assertEqual(path, "/captures/a/b/a.pcap")
        self.assertEqual(headers["x-amz-acl"], "public-read")
        self.assertEqual(headers["x-amz-server-side-encryption"], "AES256")
        self.assertIn("/eu-north-1/s3/aws4_request", headers["authorization"])

    async def test_storage(self) -> None:
        """The storage class and the key are as configured. The key goes before other encryption."""
        destination = self.make(storage_class="ONEZONE_IA", kms_key_id="alias/x", encryption=True)
        self.server.headers = {"x-amz-server-side-encryption": "aws:kms"}
        await destination.store(make_artifact(self.content, encryption=False))
        [(_, headers, _)] = self.server.requests
        self.assertEqual(headers["x-amz-storage-class"], "ONEZONE_IA")
        self.assertEqual(headers["x-amz-server-side-encryption"], "aws:kms")
        self.assertEqual(headers["x-amz-server-side-encryption-aws-kms-key-id"], "alias/x")

    def test_storage_classes(self) -> None:
        """All storage classes that are known are botocore's."""
        model = botocore.session.get_session().get_service_model("s3")
        self.assertLessEqual({*STORAGE_CLASSES}, {*model.shape_for("StorageClass").enum})

    async def test_request_overrides(self) -> None:
        """What the request says goes before what is configured, and stays with that request."""
        destination = self.make(folder="x", acl="public-read", endpoint="127.0.0.1:1", encryption=True)
        asked = {
            "bucket": "other",
            "folder": "y",
            "acl": "private",
            "region": "eu-west-3",
            "endpoint": self.server.endpoint,
            "encryption": False,
        }
        await destination.store(make_artifact(self.content, name="a.pcap", **asked))
        [(path, headers, _)] = self.server.requests
        self.assertEqual(path, "/other/y/a.pcap")
        self.assertIsNone(headers["x-amz-acl"])
        self.assertIsNone(headers["x-amz-server-side-encryption"])
        self.assertIn("/eu-west-3/s3/aws4_request", headers["authorization"])
        stored = destination.store(make_artifact(self.content, name="a.pcap"))
        self.assertIn("127.0.0.1:1", str(await self.assertFailure(stored, DestinationError)))

    async def test_side_by_side(self) -> None:
        """Many at once each arrive whole."""
        destination = self.make()
        for around in range(5):
            stores = [
                destination.store(make_artifact(self.content, name=f"{around}{n}.pcap")) for n in range(10)
            ]
            await defer.gatherResults(stores)
        with self.content.open() as reader:
            data = reader.read()
        self.assertEqual(len({path for path, _, _ in self.server.requests}), 50)
        self.assertTrue(all(body == data for _, _, body in self.server.requests))

    async def test_bounded_clients(self) -> None:
        """Clients for the regions and endpoints that requests name are reused, up to a number."""
        made: list[str] = []
        make = boto3.session.Session.client

        def noted(session: Any, *args: Any, **options: Any) -> Any:
            made.append(options["region_name"])
            return make(session, *args, **options)

        self.patch(boto3.session.Session, "client", noted)
        destination = self.make()
        regions = [f"region-{number}" for number in range(clients.MAX_CLIENTS + 1)]
        for region in (*regions, *reversed(regions)):
            await destination.store(make_artifact(self.content, region=region))
        # Only the first one had been evicted.
        self.assertEqual(made, [*regions, regions[0]])

    def test_check(self) -> None:
        """Options are checked by their types and by the operator's rules, each by its field."""
        narrow = self.make(overrides=frozenset({"folder", "endpoint"}), endpoints=("https://s3.example.com",))
        for options, words in (
            ({"bucket": "theirs"}, 'bucket = "theirs": must not be set by a request'),
            ({"endpoint": "https://evil.example.com"}, "must be one of https://s3.example.com"),
            ({"key": "b"}, "key: is not a known key"),
            ({"bpf": "b"}, "bpf: is not a known key"),
            ({"bucket": ["b"]}, 'bucket = ["b"]: must be the name of a bucket'),
            ({"bucket": "../../evil"}, 'bucket = "../../evil": must be the name of a bucket'),
            ({"folder": "../../../etc"}, 'folder = "../../../etc": must be a path'),
            ({"folder": True}, "folder = true: must be a path"),
            ({"folder": "a/{nod}"}, "folder = \"a/{nod}\": has the unknown placeholder '{nod}'; the known"),
            ({"folder": "a/{node}/.."}, 'folder = "a/{node}/..": must be a path'),
            ({"encryption": "no"}, 'encryption = "no": must be true or false'),
            ({"acl": "all"}, 'acl = "all": must be one of'),
            ({"region": "x.evil"}, 'region = "x.evil": must be the name of a region'),
            ({"endpoint": "http://evil/?x="}, 'endpoint = "http://evil/?<secret>": must be HOST'),
            ({"endpoint": True}, "endpoint = true: must be one line of text"),
        ):
            [problem] = narrow.check(options)
            self.assertIn(words, str(problem))
            self.assertEqual(problem.path, next(iter(options)))
        self.assertEqual(list(narrow.check({"folder": "theirs", "endpoint": "s3.example.com"})), [])
        wide = self.make()
        for options, words in (
            ({"storageclass": "standard"}, 'storageclass = "standard": must be one of STANDARD, '),
            ({"kmskeyid": "a b"}, 'kmskeyid = "a b": must be the id, the alias or the ARN of a KMS key'),
            ({"kmskeyid": "a\n"}, "must be the id, the alias or the ARN of a KMS key"),
        ):
            self.assertIn(words, str(next(wide.check(options))))
            self.assertIn("must not be set by a request", str(next(narrow.check({**options, **GOOD}))))
        self.assertEqual(list(wide.check(GOOD)), [])

    async def test_no_bucket(self) -> None:
        """A missing bucket is an error, without any connection."""
        error = await self.refused(bucket=None)
        self.assertFalse(error.retryable)
        self.assertIn("no bucket", str(error))
        self.assertEqual(self.server.requests, [])

    async def test_retryable(self) -> None:
        """Throttling, and answers that may pass, are retryable; other refusals are not."""
        for status, code in (
            (503, "SlowDown"),
            (400, "RequestTimeout"),
            (400, "ThrottlingException"),
            (400, "KMS.ThrottlingException"),
            (429, "x"),
            (408, "x"),
            (500, "InternalError"),
            (502, "x"),
            (403, "RequestTimeTooSkewed"),
        ):
            self.server.answer = refusal(status, code)
            error = await self.refused()
            self.assertTrue(error.retryable, (status, code))
            self.assertIn(f"{code}: no", str(error))
        for status, code in (
            (403, "SignatureDoesNotMatch"),
            (403, "AccessDenied"),
            (404, "NoSuchBucket"),
            (400, "MetadataTooLarge"),
            (400, "KMS.DisabledException"),
            (501, "NotImplemented"),
        ):
            self.server.answer = refusal(status, code)
            error = await self.refused()
            self.assertFalse(error.retryable, (status, code))
            self.assertIn(f"s3://captures/web1-eth0-1700000000-abc.pcap: {code}: no", str(error))

    async def test_redirects(self) -> None:
        """A redirect is followed to another region of the service only, which is asked for once."""
        for status in (301, 302, 307, 308):
            self.server.requests.clear()
            self.server.heads = 0
            self.server.headers = {"Location": f"{self.server.endpoint}/elsewhere"}
            self.server.answer = refusal(status, "Moved")
            error = await self.refused()
            self.assertFalse(error.retryable, status)
            self.assertIn("Moved: no", str(error))
            self.assertEqual(len(self.server.requests), 1, status)
            self.assertLessEqual(self.server.heads, 1, status)

    async def test_asked_to_wait(self) -> None:
        """If the service asks us to wait, the error says for how long; there is no request meanwhile."""
        for status, code in ((429, "TooManyRequests"), (503, "SlowDown")):
            self.server.answer = refusal(status, code)
            self.server.headers = {"Retry-After": "17"}
            self.assertEqual((await self.refused()).retry_after_seconds, 17.0)
            self.server.headers = {}
            self.assertIsNone((await self.refused()).retry_after_seconds)
        self.assertEqual(len(self.server.requests), 4)

    async def test_words(self) -> None:
        """A server's message is one line, shortened, without the key."""
        self.server.answer = refusal(403, "Denied", "a\n\tb " + SECRET + " v3ry%2Fs3cr3t%2Bk3y" + "x" * 5000)
        words = str(await self.refused())
        self.assertIn("Denied: a b [access key] [access key]xxx", words)
        self.assertLess(len(words), 400)

    async def test_rubbish(self) -> None:
        """An answer that isn't from S3 is an error."""
        for status in (500, 404):
            self.server.answer = lambda status=status: (status, b"<html>\x00")
            await self.refused()

    async def test_no_connection(self) -> None:
        """A refused connection is retryable."""
        error = await self.refused({"endpoint": "http://127.0.0.1:1"})
        self.assertTrue(error.retryable)
        self.assertIn("Could not connect", str(error))

    async def test_unknown_host(self) -> None:
        """So is an unknown host."""
        self.assertTrue((await self.refused({"endpoint": "http://nowhere.invalid"})).retryable)

    async def test_no_credentials(self) -> None:
        """Missing credentials are not retryable, and named."""
        empty = self.mktemp()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": empty,
            "AWS_CONFIG_FILE": empty,
        }
        self.patch(os, "environ", environment)
        error = await self.refused(access_id=None, access_key=None)
        self.assertFalse(error.retryable)
        self.assertIn("Unable to locate credentials", str(error))

    async def test_credentials_anew(self) -> None:
        """
        Credentials of a profile are looked for again where there were none, and where the
        configured endpoint refuses what was there; no other endpoint has a say in that.
        """
        path = os.path.abspath(self.mktemp())
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": path,
            "AWS_CONFIG_FILE": path,
        }
        self.patch(os, "environ", environment)
        destination = self.make(access_id=None, access_key=None)

        def write(id: str) -> None:
            with open(path, "w") as file:
                file.write(f"[default]\naws_access_key_id = {id}\naws_secret_access_key = x\n")

        async def used(**asked: Any) -> str:
            with contextlib.suppress(DestinationError):
                await destination.store(make_artifact(self.content, **asked))
            found: str = self.server.requests[-1][1]["authorization"]
            return found.partition("Credential=")[2].partition("/")[0]

        await self.assertFailure(destination.store(make_artifact(self.content)), DestinationError)
        self.assertEqual(self.server.requests, [])
        write("FIRST")
        self.assertEqual(await used(), "FIRST")
        self.assertEqual(await used(endpoint=self.server.endpoint + "/"), "FIRST")
        write("SECOND")
        self.server.answer = refusal(403, "AccessDenied")
        self.assertEqual(await used(), "FIRST")
        self.server.answer = refusal(403, "ExpiredToken")
        self.assertEqual([await used(), await used()], ["FIRST", "SECOND"])
        elsewhere = self.server.endpoint.replace("127.0.0.1", "localhost")
        self.assertEqual(await used(endpoint=elsewhere), "SECOND")
        write("THIRD")
        self.assertEqual(await used(endpoint=elsewhere), "SECOND")

    async def test_cancel(self) -> None:
        """On cancel the Deferred fires at once; the thread notices, and closes what it reads."""
        content = MemfdContent(zeros=100_000_000)
        self.addCleanup(content.close)
        stored = self.make().store(make_artifact(content))
        stored.cancel()
        await self.assertFailure(stored, defer.CancelledError)
        await self.threads.stopService()
        self.assertTrue(content.all_closed)
        self.assertEqual(self.server.requests, [])

    async def test_content_that_is_gone(self) -> None:
        """A content that can't be opened is an error as any other."""
        gone = MemfdContent(b"x")
        gone.close()
        await self.assertFailure(self.make().store(make_artifact(gone)), DestinationError)


class LazyImportTests(SynchronousTestCase):
    """What L{S3} costs that is not used."""

    def test_nothing_before_the_first(self) -> None:
        """Nothing is made, and nothing connected to, by the constructor."""
        self.patch(boto3.session, "Session", lambda **_: self.fail("a session was made"))
        S3(run_in_thread=run_now, run_elsewhere=run_now, bucket="b")
