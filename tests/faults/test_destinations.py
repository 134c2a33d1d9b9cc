"""
Destinations in trouble: what was captured is delivered exactly once, or is in the spool
until it is; and descriptors and threads are as before.

CloudShark is the exception: where it took a capture and its answer was lost, the next
attempt makes a second one of the same name, for its API has no name to find it by.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliverySpooled
from pcapsvc.destinations.cloudshark.destination import CloudShark
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.certificates import Authority
from peers.cloudshark import (
    Behaviour,
    CloudSharkServer,
    accept,
    drip,
    forget,
    hang,
    refuse,
    reset,
    slow,
)
from peers.requirement import require, require_root
from peers.s3 import S3Server
from tests.faults.house import House, left_as, memory_bytes, possessions, until
from tests.faults.proxy import Fault, FaultyProxy, answer

# What Twisted says of a reset, and what botocore does.
_RESET = "Connection to the other side was lost in a non-clean fashion"
_RESET_S3 = "Connection was closed before we received a valid response"
# Thirty captures of a megabyte are what is not kept.
_MOST_KEPT_BYTES = 8_000_000
NAME = "web1-eth0-1700000000-abc.pcap"


class FaultCase(TestCase):
    """A house, and what it must leave behind."""

    timeout = 100

    async def setUp(self) -> None:  # type: ignore[override]
        # While the reactor runs, it has a pipe more.
        await task.deferLater(reactor, 0)
        self.data = os.urandom(500_000)
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()

    def house(self, make: Callable[[RunInThread], IDestination], **options: Any) -> House:
        """A house that runs until the end of the test."""
        path = self.path / "spool"
        path.mkdir(exist_ok=True)
        house = House(path, make, **options)
        self.addCleanup(house.stop)
        house.start()
        return house

    async def spooled(self, house: House) -> None:
        """Deliver a capture in vain: it is in the spool, byte for byte, and that is what is told."""
        await house.deliver(self.data)
        self.assertEqual(house.told(CaptureDelivered), [])
        self.assertEqual(house.told(DeliveryFailed), [])
        self.assertEqual(len(house.told(DeliverySpooled)), 1)
        self.assertEqual(house.spool.entries, 1)
        [file] = (self.path / "spool").glob("*/capture.pcap")
        self.assertEqual(file.read_bytes(), self.data)

    async def delivered_in_the_end(self, house: House) -> None:
        """When nothing is in its way any more, it is delivered from the spool, and not once more."""
        await house.emptied()
        await house.stop()
        self.assertEqual(len(house.told(CaptureDelivered)), 1)
        house.start()
        await until(lambda: house.spool._folder.is_open())
        await house.stop()
        self.assertEqual(house.told(CaptureDelivered), [])
        self.assertEqual({path.name for path in (self.path / "spool").iterdir()}, {"lock"})

    async def costs_no_memory(self, words: str) -> None:
        """
        Thirty attempts in vain leave nothing in memory.

        @param words: what is told of each.
        """
        self.data = os.urandom(1_000_000)
        # Whoever answers is to have the time for it.
        timeout_seconds = 0.3 if "0.3 s" in words else 10.0
        house = self.house(self.make, attempts=10, timeout_seconds=timeout_seconds, retry_seconds=0.02)
        await house.deliver(self.data, "first.pcap")
        before = memory_bytes()
        for n in range(3):
            await house.deliver(self.data, f"{n}.pcap")
        self.assertLess(memory_bytes() - before, _MOST_KEPT_BYTES)
        self.assertEqual(house.spool.entries, 4)
        self.assertGreaterEqual(len(house.problems), 40)
        for problem in house.problems:
            self.assertIn(words, problem)
        await house.stop()

    def empty_spool(self) -> None:
        """For another house."""
        shutil.rmtree(self.path / "spool")

    def assert_asked(self, times: list[float]) -> None:
        """Between two attempts there was the second that was asked for, and not much more."""
        self.assertEqual(len(times), 2)
        self.assertGreaterEqual(times[1] - times[0], 1.0)
        self.assertLess(times[1] - times[0], 4.0)


class LocalDirectoryTests(FaultCase):
    """A folder of this host."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.folder = self.path / "captures"
        self.folder.mkdir()
        self.before = possessions()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return LocalDirectory(directory=str(self.folder), run_in_thread=run_in_thread)

    def there(self) -> list[bytes]:
        """What is in the folder."""
        return [path.read_bytes() for path in self.folder.iterdir()]

    async def test_missing_folder(self) -> None:
        """A folder that is missing, and comes back."""
        self.folder.rmdir()
        house = self.house(self.make)
        await self.spooled(house)
        self.folder.mkdir()
        await self.delivered_in_the_end(house)
        self.assertEqual(self.there(), [self.data])
        await left_as(self.before)

    async def test_full_disk(self) -> None:
        """A disk that is full, until somebody makes room."""
        require_root("to mount a small file system")
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(self.folder)]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.folder)], check=True)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("No space left on device", house.problems[0])
        self.assertEqual(self.there(), [])
        subprocess.run(["mount", "-o", "remount,size=4m", str(self.folder)], check=True)
        await self.delivered_in_the_end(house)
        self.assertEqual(self.there(), [self.data])
        await left_as(self.before)

    async def test_full_spool(self) -> None:
        """Where the spool's disk is full as well, the capture is lost, and told to be."""
        require_root("to mount a small file system")
        (self.path / "spool").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(self.path / "spool")]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.path / "spool")], check=True)
        self.folder.rmdir()
        house = self.house(self.make)
        await house.deliver(self.data)
        [failed] = house.told(DeliveryFailed)
        self.assertIn("No such file or directory; and not spooled:", failed.problem)
        self.assertIn("No space left on device", failed.problem)
        self.assertEqual({path.name for path in (self.path / "spool").iterdir()}, {"lock"})
        await house.deliver(self.data[:1000], "small.pcap")
        self.assertEqual(house.spool.entries, 1)
        await house.stop()
        await left_as(self.before)

    async def test_arrived_before(self) -> None:
        """An attempt that arrived, and of which nobody heard, is not a second capture."""
        (self.folder / NAME).write_bytes(self.data)
        house = self.house(self.make)
        await house.deliver(self.data)
        self.assertEqual(len(house.told(CaptureDelivered)), 1)
        self.assertEqual(self.there(), [self.data])


class CloudSharkTests(FaultCase):
    """CloudShark, over TLS."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server = CloudSharkServer()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.ca_file = self.path / "ca.pem"
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        self.token = self.server.token
        self.before = possessions()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return CloudShark(
            reactor,
            scheme="https",
            host=self.server.host,
            port=self.server.port,
            token=self.token,
            verify=str(self.ca_file),
        )

    async def trouble(
        self, behaviour: Behaviour, words: str, *, arrives: bool = False, timeout_seconds: float = 20.0
    ) -> None:
        """
        One failure, which another attempt mends; and as many as bring it into the spool.

        @param words: what is told of them.
        @param arrives: whether each of them is a capture at the server, all the same.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        """
        self.server.behave(behaviour, accept())
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        await house.deliver(self.data, "first.pcap")
        self.assertEqual(len(house.told(CaptureDelivered)), 1, house.problems)
        self.assertEqual(len(house.problems), 1)
        self.assertIn(words, house.problems[0])
        self.assertEqual(house.spool.entries, 0)
        self.assertEqual(len(self.server.captures()), 1)
        await house.stop()
        house.start()
        # Whoever could look would find there what has arrived.
        self.server.behave(behaviour, search=refuse(503, "later") if arrives else None)
        await self.spooled(house)
        self.server.behave(accept())
        await self.delivered_in_the_end(house)
        self.assertEqual(self.server.captures(), ["first.pcap", NAME])
        self.assertEqual({upload.data for upload in self.uploads()}, {self.data})
        await left_as(self.before)

    def uploads(self) -> list[Any]:
        """What reached the server whole, whatever it answered."""
        return [upload for upload in self.server.uploads() if upload.filename is not None]

    async def test_internal_error(self) -> None:
        """500."""
        await self.trouble(refuse(500, "out of order"), "answered 500: out of order")

    async def test_too_many(self) -> None:
        """429, with C{Retry-After}, which is honoured: in memory, and in the spool."""
        for max_delay_seconds in (3.0, None):
            earlier = len(self.uploads())
            self.server.behave(refuse(429, "slow down", retry_after="1"), accept())
            house = self.house(self.make, max_delay_seconds=max_delay_seconds)
            await house.deliver(self.data, f"{earlier}.pcap")
            self.assertEqual(len(house.told(DeliverySpooled)), 0 if max_delay_seconds else 1)
            await house.emptied()
            self.assert_asked([upload.time for upload in self.uploads()[earlier:]])
            await house.stop()
        await left_as(self.before)

    async def test_reset_before_the_body(self) -> None:
        """A reset at once."""
        await self.trouble(reset(), _RESET)

    async def test_reset_within_the_body(self) -> None:
        """A reset in the middle."""
        await self.trouble(reset(100_000), _RESET)

    async def test_reset_after_the_body(self) -> None:
        """A reset in place of the answer: the capture is found there, and not uploaded again."""
        await self.trouble(forget(), _RESET, arrives=True)

    async def test_no_search(self) -> None:
        """Where the token may not search, what may have arrived is uploaded again, under the same name."""
        self.server.behave(forget(), accept(), search=refuse(401, "not permitted"))
        house = self.house(self.make)
        await house.deliver(self.data)
        self.assertEqual(len(house.told(CaptureDelivered)), 1, house.problems)
        self.assertEqual(self.server.captures(), [NAME, NAME])
        await house.stop()

    async def test_hangs(self) -> None:
        """No answer at all."""
        await self.trouble(hang(), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self) -> None:
        """An answer that takes half a second for each byte."""
        await self.trouble(drip(2), "timed out after 2 s", arrives=True, timeout_seconds=2.0)

    async def test_reads_slowly(self) -> None:
        """An upload that is read too slowly."""
        self.data = os.urandom(8_000_000)
        await self.trouble(slow(1_000_000), "timed out after 2 s", timeout_seconds=2.0)

    async def test_wrong_certificate(self) -> None:
        """A certificate of a stranger, until the right authority is named."""
        Authority(self.path, "stranger").file.rename(self.ca_file)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("certificate verify failed", house.problems[0])
        self.assertEqual(self.server.uploads(), [])
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        await self.delivered_in_the_end_after_a_restart(house)

    async def test_wrong_token(self) -> None:
        """A token that is not known any more."""
        self.token = "other"
        house = self.house(self.make)
        await self.spooled(house)
        self.token = self.server.token
        await self.delivered_in_the_end_after_a_restart(house)

    async def test_token_taken_back(self) -> None:
        """A token that is refused from now on, and later is not, while the daemon runs."""
        house = self.house(self.make)
        await house.deliver(self.data, "earlier.pcap")
        self.assertEqual(len(house.told(CaptureDelivered)), 1)
        self.server.behave(refuse(401, "Unauthorized"))
        await house.deliver(self.data)
        [spooled] = house.told(DeliverySpooled)
        self.assertIn("answered 401: Unauthorized", spooled.problem)
        self.server.behave(accept())
        await until(lambda: len(house.told(CaptureDelivered)) == 2)
        self.assertEqual(house.spool.entries, 0)
        self.assertEqual(self.uploads()[-1].data, self.data)
        await house.stop()
        await left_as(self.before)

    async def test_memory(self) -> None:
        """Nothing of captures is kept in memory by attempts that hang, are refused or reset."""
        for behaviour, words in (
            (hang(), "timed out after 0.3 s"),
            (refuse(500, "out of order"), "out of order"),
            (reset(500_000), _RESET),
        ):
            self.server.behave(behaviour)
            await self.costs_no_memory(words)
            self.empty_spool()
        await left_as(self.before)

    async def test_gone(self) -> None:
        """No server, until there is one again."""
        self.server.end()
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("Connection was refused", house.problems[0])
        self.server.start()
        await self.delivered_in_the_end_after_a_restart(house)

    async def delivered_in_the_end_after_a_restart(self, house: House) -> None:
        """What an operator mended is tried again at once after a restart."""
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assertEqual([upload.data for upload in self.uploads()], [self.data])
        await left_as(self.before)


class S3Tests(FaultCase):
    """S3, with signatures."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server = S3Server()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.keys()
        authority = Authority(self.path, "stranger")
        self.authority_file = authority.file
        certificate = authority.issue("s3")
        self.files = (certificate.certificate, certificate.key)
        self.before = possessions()
        self.proxies: list[FaultyProxy] = []
        self.proxy = self.proxied()
        self.endpoint = f"http://127.0.0.1:{self.proxy.port}"
        self.credentials: dict[str, str | None] = {
            "access_id": self.server.access_key,
            "access_key": self.server.secret_key,
        }

    def proxied(self, **options: Any) -> FaultyProxy:
        """A proxy before the server."""
        proxy = FaultyProxy(int(self.server.endpoint.rpartition(":")[2]), **options)
        proxy.start()
        self.addCleanup(proxy.stop)
        self.proxies.append(proxy)
        return proxy

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return S3(
            run_in_thread=run_in_thread,
            run_elsewhere=run_in_thread,
            endpoint=self.endpoint,
            bucket=self.server.bucket,
            region=self.server.region,
            **self.credentials,
        )

    def keys(self) -> list[str]:
        """The names of what the server has."""
        return self.server.keys()

    async def trouble(
        self, fault: Fault, words: str, *, arrives: bool = False, timeout_seconds: float = 20.0
    ) -> None:
        """
        Failures until the capture is in the spool, and then none.

        @param words: what is told of them.
        @param arrives: whether the server has the capture in spite of them.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        """
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        self.proxy.fault = fault
        await self.spooled(house)
        self.assertIn(words, house.problems[0])
        # Threads come back from attempts that are over; the spool's go on one by one.
        await until(lambda: len(self.proxy.times) >= 5)
        await until(lambda: house.busy_threads <= 1)
        self.assertEqual(self.keys(), [NAME] if arrives else [])
        self.proxy.fault = None
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()

    def assert_there(self) -> None:
        """The server has the capture, once."""
        self.assertEqual(self.keys(), [NAME])
        self.assertEqual(self.server.get(NAME)[0], self.data)

    async def assert_nothing_left(self) -> None:
        """Descriptors and threads are as they were."""
        for proxy in self.proxies:
            proxy.stop()
        await left_as(self.before)

    async def test_internal_error(self) -> None:
        """500."""
        await self.trouble(Fault(answer=answer(500, "InternalError")), "InternalError")

    async def test_too_many(self) -> None:
        """429 and 503, with C{Retry-After}, which is honoured: in memory, and in the spool."""
        for status, code in ((429, "TooManyRequests"), (503, "SlowDown")):
            for max_delay_seconds in (3.0, None):
                self.proxy.times.clear()
                self.proxy.fault = Fault(answer=answer(status, code, "Retry-After: 1"))
                house = self.house(self.make, max_delay_seconds=max_delay_seconds)
                delivering = Deferred.fromCoroutine(house.deliver(self.data))
                await until(lambda house=house: bool(house.problems))  # type: ignore[misc]
                self.proxy.fault = None
                await delivering
                self.assertEqual(len(house.told(DeliverySpooled)), 0 if max_delay_seconds else 1)
                await house.emptied()
                self.assert_asked(self.proxy.times)
                await house.stop()
        self.assert_there()
        await self.assert_nothing_left()

    async def test_reset_before_the_body(self) -> None:
        """A reset at once."""
        await self.trouble(Fault(body_bytes=0), _RESET_S3)

    async def test_reset_within_the_body(self) -> None:
        """A reset in the middle."""
        await self.trouble(Fault(body_bytes=100_000), _RESET_S3)

    async def test_reset_after_the_body(self) -> None:
        """A reset in place of the answer: the next attempt puts the same object."""
        await self.trouble(Fault(forgetful=True), _RESET_S3, arrives=True)

    async def test_hangs(self) -> None:
        """No answer at all."""
        await self.trouble(Fault(silent=True), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self) -> None:
        """An answer that takes a tenth of a second for each byte."""
        await self.trouble(
            Fault(answer_bytes_per_second=10), "timed out after 2 s", arrives=True, timeout_seconds=2.0
        )

    async def test_drips_over_tls(self) -> None:
        """So it is over TLS, with a certificate that is trusted."""
        self.patch(os, "environ", {**os.environ, "AWS_CA_BUNDLE": str(self.authority_file)})
        self.proxy = self.proxied(certificate=self.files)
        self.endpoint = f"https://127.0.0.1:{self.proxy.port}"
        await self.trouble(
            Fault(answer_bytes_per_second=10), "timed out after 2 s", arrives=True, timeout_seconds=2.0
        )

    async def test_reads_slowly(self) -> None:
        """An object that is read too slowly."""
        self.data = os.urandom(12_000_000)
        await self.trouble(Fault(read_bytes_per_second=1_000_000), "timed out after 2 s", timeout_seconds=2.0)

    async def test_refused_credentials(self) -> None:
        """Credentials that are refused for a while."""
        refused = answer(403, "InvalidAccessKeyId")
        await self.trouble(Fault(answer=refused), "InvalidAccessKeyId")

    async def test_gone(self) -> None:
        """No server, until there is one again."""
        house = self.house(self.make)
        self.proxy.stop()
        await self.spooled(house)
        self.assertIn("Could not connect to the endpoint URL", house.problems[0])
        self.proxied(at=self.proxy.port)
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()

    async def test_memory(self) -> None:
        """Nothing of captures is kept in memory by attempts that hang, are refused or reset."""
        for fault, words in (
            (Fault(silent=True), "timed out after 0.3 s"),
            (Fault(answer=answer(500, "InternalError")), "InternalError"),
            (Fault(body_bytes=500_000), _RESET_S3),
        ):
            self.proxy.fault = fault
            await self.costs_no_memory(words)
            self.empty_spool()
        await self.assert_nothing_left()

    async def test_wrong_certificate(self) -> None:
        """A certificate that nobody vouches for, until the right address is named."""
        right, strange = self.endpoint, self.proxied(certificate=self.files)
        self.endpoint = f"https://127.0.0.1:{strange.port}"
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("CERTIFICATE_VERIFY_FAILED", house.problems[0])
        self.endpoint = right
        await self.mended(house)

    async def test_wrong_secret(self) -> None:
        """A secret that is not the right one any more."""
        right, self.credentials = self.credentials, {**self.credentials, "access_key": "wr0ng" * 8}
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("SignatureDoesNotMatch", house.problems[0])
        self.credentials = right
        await self.mended(house)

    async def test_no_credentials(self) -> None:
        """Credentials that are nowhere to be found, until they are."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.patch(os, "environ", {**bare, "HOME": str(self.path), "AWS_EC2_METADATA_DISABLED": "true"})
        right, self.credentials = self.credentials, {"access_id": None, "access_key": None}
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("credentials", house.problems[0])
        self.credentials = right
        await self.mended(house)

    async def test_vanishing_credentials(self) -> None:
        """
        A profile that is emptied and refused while the daemon runs: it notices, and finds
        the new ones without a restart.
        """
        profile = self.path / "credentials"
        words = "[default]\naws_access_key_id = {access_id}\naws_secret_access_key = {access_key}\n"
        profile.write_text(words.format(**self.credentials))
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        more = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": str(profile)}
        self.patch(os, "environ", {**bare, "HOME": str(self.path), **more})
        right, self.credentials = self.credentials, {"access_id": None, "access_key": None}
        house = self.house(self.make)
        await house.deliver(self.data, "first.pcap")
        profile.write_text("")
        # What was read goes on, until it is refused.
        await house.deliver(self.data, "second.pcap")
        self.assertEqual(self.keys(), ["first.pcap", "second.pcap"])
        self.proxy.fault = Fault(answer=answer(403, "InvalidAccessKeyId"))
        await house.deliver(self.data)
        self.assertIn("InvalidAccessKeyId", house.problems[-1])
        self.proxy.fault = None
        await house.deliver(self.data, "third.pcap")
        self.assertIn("Unable to locate credentials", house.problems[-1])
        self.assertEqual(self.keys(), ["first.pcap", "second.pcap"])
        self.assertEqual(house.spool.entries, 2)
        profile.write_text(words.format(**right))
        await until(lambda: house.spool.entries == 0)
        self.assertEqual(self.keys(), ["first.pcap", "second.pcap", "third.pcap", NAME])
        await house.stop()
        await self.assert_nothing_left()

    async def mended(self, house: House) -> None:
        """What an operator mended is tried again at once after a restart."""
        self.assertEqual(self.keys(), [])
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()
