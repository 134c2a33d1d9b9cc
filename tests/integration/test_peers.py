"""The peers are real: they refuse what a real one refuses, and count what was really sent."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from unittest import SkipTest

from botocore.exceptions import ClientError
from twisted.trial.unittest import FailTest, SynchronousTestCase

from peers import control_group, wire
from peers.cloudshark import CloudSharkServer, Shown, accept, answer, hang, refuse, reset, slow
from peers.frames import number_of, udp_frame
from peers.redis import RedisRefused, RedisServer
from peers.requirement import require
from peers.s3 import shared_server
from peers.tcpdump import Tcpdump, tshark_complaint
from peers.wire import Wire

shared_peer = "S3 server"


class RequirementTests(SynchronousTestCase):
    """What a machine doesn't have is skipped with its reason; in CI it is a failure."""

    def _in(self, ci: str) -> None:
        before = os.environ.get("CI")
        os.environ["CI"] = ci
        if before is None:
            self.addCleanup(os.environ.pop, "CI")
        else:
            self.addCleanup(os.environ.__setitem__, "CI", before)

    def test_skips(self) -> None:
        """On a user's machine the test is skipped."""
        self._in("")
        error = self.assertRaises(SkipTest, require, False, "no such thing")
        self.assertEqual(str(error), "no such thing")

    def test_fails_in_ci(self) -> None:
        """In CI it fails."""
        self._in("true")
        self.assertRaises(FailTest, require, False, "no such thing")

    def test_goes_on(self) -> None:
        """What is there, is there."""
        require("something", "no such thing")


class RedisServerTests(SynchronousTestCase):
    """L{RedisServer}."""

    def _started(self, **options: object) -> RedisServer:
        server = RedisServer(**options)  # type: ignore[arg-type]
        self.addCleanup(server.stop)
        server.start()
        return server

    def test_publishes(self) -> None:
        """A message reaches those who are subscribed, and nobody else."""
        server = self._started()
        self.assertEqual(server.publish("capture", b"{}"), 0)
        with socket.create_connection((server.host, server.port), timeout=60) as subscriber:
            subscriber.sendall(b"SUBSCRIBE capture\r\n")
            stream = subscriber.makefile("rb")
            for _ in range(6):  # the answer: 3 elements, two of them of two lines, and its head
                stream.readline()
            self.assertEqual(server.subscribers("capture"), 1)
            self.assertEqual(server.publish("capture", b"\x00\xff"), 1)
            self.assertEqual([stream.readline() for _ in range(7)][-1], b"\x00\xff\r\n")
            server.drop_subscribers()
            self.assertEqual(stream.readline(), b"")

    def test_password(self) -> None:
        """A wrong password is refused, and so is none."""
        server = self._started(password="right")
        self.assertEqual(server.command("PING", user="default", password="right"), b"PONG")
        wrong = self.assertRaises(RedisRefused, server.command, "PING", user="default", password="wrong")
        self.assertIn("WRONGPASS", str(wrong))
        none = self.assertRaises(RedisRefused, server.command, "PING", user=None)
        self.assertIn("NOAUTH", str(none))

    def test_user(self) -> None:
        """An ACL user comes in by its own password; the default user is off."""
        server = self._started(users={"pcap": "its own"})
        self.assertEqual(server.command("ACL", "WHOAMI", user="pcap", password="its own"), b"pcap")
        self.assertRaises(RedisRefused, server.command, "PING", user="pcap", password="another")
        self.assertRaises(RedisRefused, server.command, "PING", user=None)

    def test_tls(self) -> None:
        """With TLS its certificate is good for its authority, and for no other."""
        server = self._started(tls=True)
        self.assertEqual(server.command("PING"), b"PONG")
        with socket.create_connection((server.host, server.port), timeout=60) as plain:
            strict = ssl.create_default_context()
            self.assertRaises(
                ssl.SSLCertVerificationError, strict.wrap_socket, plain, server_hostname="localhost"
            )

    def test_restart(self) -> None:
        """After a restart it answers on the same port, by another process."""
        server = self._started()
        before = server.port, server.pid
        server.restart()
        self.assertEqual(server.publish("capture", b"{}"), 0)
        self.assertEqual(server.port, before[0])
        self.assertNotEqual(server.pid, before[1])

    def test_crash(self) -> None:
        """After a crash it does not count as running, and can be started again."""
        server = self._started()
        os.kill(server.pid, signal.SIGKILL)
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        self.assertFalse(server.is_running)
        server.start()
        self.assertEqual(server.command("PING"), b"PONG")

    def test_freeze(self) -> None:
        """Frozen, it takes a connection and doesn't answer; thawed, it does."""
        server = self._started()
        with socket.create_connection((server.host, server.port), timeout=0.2) as client:
            server.freeze()
            client.sendall(b"PING\r\n")
            self.assertRaises(TimeoutError, client.recv, 100)
            server.thaw()
            client.settimeout(60)
            self.assertEqual(client.recv(100), b"+PONG\r\n")

    def test_ends(self) -> None:
        """Nothing is left of it, even where it was frozen."""
        server = self._started()
        server.freeze()
        pid = server.pid
        server.stop()
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)


class WireTests(SynchronousTestCase):
    """L{Wire}, with L{Tcpdump} at its near end."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.tcpdump = Tcpdump(self.wire.interface)
        self.addCleanup(self.tcpdump.stop)
        self.tcpdump.start()

    def test_exact(self) -> None:
        """What is sent arrives: each frame once, in order, byte for byte, and nothing else."""
        frames = [udp_frame(number, size=50 + number % 1400) for number in range(3000)]
        self.assertEqual(self.wire.send(frames), 3000)
        self.tcpdump.catch_up()
        self.assertEqual([packet.data for packet in self.tcpdump.finish()], frames)
        self.assertIsNone(tshark_complaint(self.tcpdump.path))

    def test_clean_up_after_a_kill(self) -> None:
        """What a killed process left behind can be removed."""
        program = (
            "import os, signal; from peers.wire import Wire; wire = Wire(); wire.start();"
            "print(wire.interface, wire.namespace, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        root = Path(__file__).parents[2]
        killed = subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
        )
        said, _ = killed.communicate(timeout=60)
        interface, namespace = said.split()
        self.assertTrue(Path("/sys/class/net", interface).exists())
        wire.clean_up_after(killed.pid)
        deadline = time.monotonic() + 60
        while Path("/sys/class/net", interface).exists() or Path("/run/netns", namespace).exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_rate(self) -> None:
        """A rate is not exceeded."""
        started = time.monotonic()
        self.wire.send([udp_frame(number) for number in range(100)], rate=500)
        self.assertGreater(time.monotonic() - started, 0.19)
        self.assertRaises(ValueError, self.wire.send, [b""] * 100, rate=1)
        self.tcpdump.wait_for(100)
        packets = self.tcpdump.finish()
        self.assertEqual([number_of(packet.data) for packet in packets], list(range(100)))

    def test_down_and_up(self) -> None:
        """An interface that is down receives nothing; up again, it does."""
        again = Tcpdump(self.wire.interface)
        self.addCleanup(again.stop)
        self.wire.down()
        with contextlib.suppress(OSError):  # the far end has no carrier then
            self.wire.send([udp_frame(1)])
        self.wire.up()
        again.start()
        self.wire.send([udp_frame(2)])
        again.wait_for(1)
        self.assertEqual([number_of(packet.data) for packet in again.finish()], [2])

    def test_delete(self) -> None:
        """A deleted pair is gone, and there is nothing to clean up."""
        self.wire.delete()
        self.assertNotIn(self.wire.interface, [name for _, name in socket.if_nameindex()])
        self.wire.stop()
        self.assertFalse(os.path.exists(f"/run/netns/{self.wire.namespace}"))


class ControlGroupTests(SynchronousTestCase):
    """A control group of the kernel's."""

    def test_limit(self) -> None:
        """The kernel kills what uses too much, without a word."""
        group = control_group.ControlGroup(100 << 20)
        self.addCleanup(group.remove)
        too_much = "b'x' * (112 << 20)"
        ended = subprocess.run([*group.wrapper, sys.executable, "-c", too_much], check=False, timeout=60)
        self.assertEqual(-signal.SIGKILL, ended.returncode)
        self.assertEqual(1, group.kills())
        self.assertGreater(group.most_bytes() or 100 << 20, 90 << 20)

    def test_removed(self) -> None:
        """Nothing is left of it."""
        group = control_group.ControlGroup(100 << 20)
        self.assertTrue(group.directory.is_dir())
        group.remove()
        self.assertFalse(group.directory.exists())

    def test_clean_up_after_a_kill(self) -> None:
        """What a killed process left behind can be removed."""
        control_group.ControlGroup(100 << 20).remove()
        program = (
            "import os, signal; from peers.control_group import ControlGroup; group = ControlGroup(1 << 30);"
            "print(group.directory, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        root = Path(__file__).parents[2]
        killed = subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
        )
        said, _ = killed.communicate(timeout=60)
        self.assertTrue(Path(said.strip()).is_dir())
        control_group.clean_up_after(killed.pid)
        self.assertFalse(Path(said.strip()).exists())


class S3ServerTests(SynchronousTestCase):
    """L{peers.s3.S3Server}."""

    def setUp(self) -> None:
        self.server = shared_server()

    def _client(self, access_key: str, secret_key: str):
        client = self.server.client("s3", access_key, secret_key)
        self.addCleanup(client.close)
        return client

    def _refused(self, client, **options: object) -> str:
        options = {"Bucket": self.server.bucket, "Key": "refused", "Body": b"x", **options}
        error = self.assertRaises(ClientError, client.put_object, **options)
        self.assertEqual(self.server.keys(), [])
        return error.response["Error"]["Code"]

    def test_stores(self) -> None:
        """An object comes back with its metadata, encryption and grants."""
        self._client(self.server.access_key, self.server.secret_key).put_object(
            Bucket=self.server.bucket,
            Key="a folder/é.pcap",
            Body=io.BytesIO(b"packets"),
            Metadata={"tags": "customer:%C3%A9,alertid:7"},
            ACL="public-read",
            ServerSideEncryption="AES256",
        )
        self.assertEqual(self.server.keys(), ["a folder/é.pcap"])
        data, metadata, head = self.server.get("a folder/é.pcap")
        self.assertEqual(data, b"packets")
        self.assertEqual(metadata, {"tags": "customer:%C3%A9,alertid:7"})
        self.assertEqual(head["ServerSideEncryption"], "AES256")
        self.assertIn("READ", [grant["Permission"] for grant in self.server.grants("a folder/é.pcap")])

    def test_wrong_secret(self) -> None:
        """A signature with another secret key is refused."""
        client = self._client(self.server.access_key, "wrong")
        self.assertEqual(self._refused(client), "SignatureDoesNotMatch")

    def test_unknown_access_key(self) -> None:
        """So is an access key that nobody has."""
        client = self._client("AKIANOBODY", self.server.secret_key)
        self.assertEqual(self._refused(client), "InvalidAccessKeyId")

    def test_unsigned(self) -> None:
        """So is a request with no signature."""
        connection = http.client.HTTPConnection(self.server.endpoint.removeprefix("http://"), timeout=60)
        self.addCleanup(connection.close)
        connection.request("PUT", f"/{self.server.bucket}/refused", body=b"x")
        self.assertEqual(connection.getresponse().status, 403)

    def test_changed_body(self) -> None:
        """So is a body that is not the one that was signed."""
        client = self._client(self.server.access_key, self.server.secret_key)
        client.meta.events.register_last(
            "before-send.s3.PutObject", lambda request, **_: setattr(request, "body", b"y")
        )
        self.assertEqual(self._refused(client), "XAmzContentSHA256Mismatch")

    def test_too_much_metadata(self) -> None:
        """So is more than 2 KB of metadata."""
        client = self._client(self.server.access_key, self.server.secret_key)
        self.assertEqual(self._refused(client, Metadata={"tags": "x" * 2050}), "MetadataTooLarge")


_BOUNDARY = "----------pcapsvc"


def _form(*parts: tuple[str, bytes]) -> bytes:
    """A body of multipart/form-data (RFC 7578)."""
    start = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; "
    return b"".join(
        [f"{start}{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts]
        + [f"--{_BOUNDARY}--\r\n".encode()]
    )


_FILE = ('name="file"; filename="a.pcap"\r\nContent-Type: application/octet-stream', bytes(range(256)) * 100)
_GOOD_FORM = _form(_FILE, ('name="additional_tags"', b"alertid:7,node:n"))


class CloudSharkServerTests(SynchronousTestCase):
    """L{CloudSharkServer}."""

    def _started(self, **options: object) -> CloudSharkServer:
        server = CloudSharkServer(**options)  # type: ignore[arg-type]
        self.addCleanup(server.stop)
        server.start()
        return server

    def _upload(
        self,
        server: CloudSharkServer,
        body: bytes = _GOOD_FORM,
        *,
        token: str = "c0ffee",
        timeout: float = 60.0,
    ) -> tuple[int, bytes]:
        trusting = ssl.create_default_context(cafile=str(server.ca_file))
        connection = http.client.HTTPSConnection("localhost", server.port, timeout=60, context=trusting)
        self.addCleanup(connection.close)
        connection.request(
            "POST",
            f"/api/v1/{token}/upload",
            body=body,
            headers={"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"},
        )
        # The server has the request by now, or at least its beginning.
        connection.sock.settimeout(timeout)
        response = connection.getresponse()
        return response.status, response.read()

    def test_takes(self) -> None:
        """An upload is taken, and what was received can be read."""
        server = self._started()
        self.assertEqual(self._upload(server), (200, b'{"filename": "a.pcap", "id": "0123456789ab"}'))
        [upload] = server.uploads()
        self.assertEqual(upload.filename, "a.pcap")
        self.assertEqual(upload.content_type, "application/octet-stream")
        self.assertEqual(upload.data, _FILE[1])
        self.assertEqual(upload.fields, {"additional_tags": "alertid:7,node:n"})
        self.assertTrue(upload.has_length)

    def test_certificates(self) -> None:
        """A certificate of another host, or of another authority, is no good."""
        for shown in (Shown.WRONG_HOST, Shown.UNTRUSTED):
            server = self._started(shown=shown)
            self.assertRaises(ssl.SSLCertVerificationError, self._upload, server)
            self.assertEqual(server.uploads(), [])

    def test_strict(self) -> None:
        """What is not a well-formed upload of one file is refused."""
        server = self._started()
        for body in (
            _GOOD_FORM[:-4],
            _form(_FILE, _FILE),
            _form(('name="file"', b"no file name")),
            _form(('name="other"; filename="a.pcap"', b"")),
            b"",
        ):
            self.assertEqual(self._upload(server, body)[0], 400, body[-300:])
        self.assertEqual(self._upload(server, token="another")[0], 404)
        self.assertEqual([upload.refused for upload in server.uploads()], [400] * 5 + [404])

    def test_behaviours(self) -> None:
        """Each behaviour serves one request, and the last one all that follow."""
        server = self._started()
        server.behave(refuse(503, "busy"), reset(), hang(), answer("not JSON"), slow(100_000), accept("abc"))
        self.assertEqual(self._upload(server), (503, b'{"status": 503, "exceptions": ["busy"]}'))
        self.assertRaises(OSError, self._upload, server)
        self.assertRaises(TimeoutError, self._upload, server, timeout=2)
        self.assertEqual(self._upload(server), (200, b"not JSON"))
        started = time.monotonic()
        self.assertEqual(self._upload(server)[0], 200)
        self.assertGreater(time.monotonic() - started, 0.2)
        for _ in range(2):
            self.assertEqual(self._upload(server), (200, b'{"filename": "a.pcap", "id": "abc"}'))
        self.assertEqual(len(server.uploads()), 7)
        server.behave(refuse(401))
        self.assertEqual(self._upload(server)[0], 401)
