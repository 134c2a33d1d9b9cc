"""A name server whose answers change: what was checked is connected to, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.process import free_port

_NAME = "changing.example"
# One that is allowed, where nobody listens, and one that is not, where somebody does.
_ALLOWED, _OTHER = "127.0.0.2", "127.0.0.1"
_CAPTURES = 8


class NameServer:
    """
    Answers each question for an address with the next one of several, and none about what is slow.

    @ivar answered: its answers.
    """

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = itertools.cycle(addresses)
        self.answered: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # A loopback address of this process's own (RFC 1122, section 3.2.1.3).
        self.address = f"127.54.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        self._socket.bind((self.address, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        # This wakes the thread, although there is no connection.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                query, client = self._socket.recvfrom(512)
            except OSError:
                return
            if not query:
                return
            if b"slow" not in query:
                self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        """RFC 1035, section 4: the question, and for type A one answer, which may not be kept."""
        end = query.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        answer = b""
        if kind == 1:
            address = next(self._addresses)
            self.answered.append(address)
            answer = struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(answer), 0, 0) + query[12:end] + answer


class ChangingNameTests(SynchronousTestCase):
    """A URL of a request whose host means another address each time that it is looked up."""

    def setUp(self) -> None:
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise SkipTest("mount namespaces need root, and unshare(1)")
        self.names = NameServer((_ALLOWED, _OTHER))
        self.addCleanup(self.names.stop)
        path = Path(self.mktemp()).absolute()
        path.write_text(f"nameserver {self.names.address}\noptions timeout:20 attempts:2\n")
        cover = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        self.wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", cover, str(path)]
        if subprocess.run([*self.wrapper, "true"], check=False, capture_output=True).returncode != 0:
            raise SkipTest("mount namespaces are not possible here")
        self.listener = socket.create_server((_OTHER, 0))
        self.addCleanup(self.listener.close)
        self.listener.setblocking(False)

    def test_never_connected(self) -> None:
        """The address that isn't allowed is refused each time, and never connected to."""
        port = self.listener.getsockname()[1]
        daemon = Daemon(
            f"[puturl]\nallow = {json.dumps([f'{_NAME}:{port}', f'{_ALLOWED}:{port}'])}\n"
            "[delivery]\nattempts = 2\nfirstdelay = 1\nmaxdelay = 1\ntimeout = 20\n"
        )
        self.addCleanup(daemon.stop)
        daemon.start(*self.wrapper)
        problems = set()
        for _ in range(_CAPTURES):
            capture = daemon.capture(
                interface=["lo"], packets=1, timeout=30, puturl=f"https://{_NAME}:{port}/a?sig=s3cr3t"
            )
            deliveries = {one["destination"]: one for one in daemon.done(capture)["deliveries"]}
            problems.add(deliveries["puturl"]["problem"])
            self.assertRaises(BlockingIOError, self.listener.accept)
        self.assertEqual(set(self.names.answered), {_ALLOWED, _OTHER})
        self.assertTrue(any("has an address that is not public" in problem for problem in problems), problems)

    def test_slow(self) -> None:
        """While the hosts of requests are looked up in vain, those of the configuration are found."""
        daemon = Daemon(
            '[puturl]\nallow = ["*.slow.example"]\n'
            f'[webhook]\nupload = true\nurl = "http://{_NAME}:{free_port()}/"\n'
            "[delivery]\nattempts = 1000\nfirstdelay = 1\nmaxdelay = 1\ntimeout = 2\n"
        )
        self.addCleanup(daemon.stop)
        daemon.start(*self.wrapper)
        request = {"interface": ["lo"], "packets": 1, "timeout": 30}
        for number in range(20):
            daemon.capture(puturl=f"https://a{number}.slow.example/file", **request)
        daemon.logged_times("to puturl failed", 20)
        capture = daemon.capture(**request)

        def refused() -> bool | None:
            # On a busy machine an attempt may take too long.
            lines = [line for line in daemon.log.splitlines() if f"{capture}: delivery attempt" in line]
            return any("to webhook failed" in line and "refused" in line for line in lines) or None

        daemon.until(refused, "an attempt that found the host, which refuses connections")
