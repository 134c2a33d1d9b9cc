"""A daemon whose name servers never answer: it stops in time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon

_STOP_SECONDS = 5
# For the interpreter to end, on a busy machine. A look-up takes 40 s.
_MORE_SECONDS = 15.0
_LOOKED_UP = ("redis", "kafka", "sqs", "cloudshark", "s3", "store", "hook")


class SilentNameServerTests(SynchronousTestCase):
    """C{/etc/resolv.conf} names a server that swallows every query, in a mount namespace of the daemon."""

    def setUp(self) -> None:
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise SkipTest("mount namespaces need root, and unshare(1)")
        # Nobody reads from it: there is no answer, and no ICMP error either.
        self.hole = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.hole.close)
        # A loopback address of this process's own (RFC 1122, section 3.2.1.3).
        self.hole.bind((f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}", 53))
        path = Path(self.mktemp()).absolute()
        path.write_text(f"nameserver {self.hole.getsockname()[0]}\noptions timeout:20 attempts:2\n")
        cover = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        self.wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", cover, str(path)]
        if subprocess.run([*self.wrapper, "true"], check=False, capture_output=True).returncode != 0:
            raise SkipTest("mount namespaces are not possible here")

    def test_stop(self) -> None:
        """With look-ups going on for sources and destinations, it has exited when C{stoptimeout} is over."""
        daemon = Daemon(
            """
            [redis]
            listen = true
            host = "redis.example"
            channel = "capture"
            [kafka]
            listen = true
            server = ["kafka.example:9092"]
            topic = "capture"
            [sqs]
            listen = true
            url = "http://sqs.example/1/queue"
            region = "eu-west-1"
            accessid = "AKIDEXAMPLE"
            accesskey = "s3cret/key"
            [cloudshark]
            upload = true
            host = "cloudshark.example"
            token = "t0k3n-t0k3n"
            [s3]
            upload = true
            endpoint = "http://s3.example"
            bucket = "captures"
            region = "eu-west-1"
            accessid = "AKIDEXAMPLE"
            accesskey = "s3cret/key"
            [puturl]
            allow = ["*.example"]
            [webhook]
            upload = true
            url = "https://hook.example/x"
            """,
            general=f"stoptimeout = {_STOP_SECONDS}",
        )
        self.addCleanup(daemon.stop)
        daemon.start(*self.wrapper)
        daemon.capture(interface=["lo"], packets=1, timeout=30, puturl="https://store.example/a?sig=s3cr3t")
        asked = self.asked_until_all()
        self.assertEqual(sorted(asked), sorted(_LOOKED_UP))
        before = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0, daemon.log)
        self.assertLess(time.monotonic() - before, _STOP_SECONDS + _MORE_SECONDS, daemon.log)

    def asked_until_all(self) -> set[str]:
        """The names that are asked for, when all of them are."""
        self.hole.settimeout(60)
        asked: set[str] = set()
        while len(asked) < len(_LOOKED_UP):
            query = self.hole.recv(512)
            # RFC 1035, section 4.1.2: a length, and the first label.
            asked.add(query[13 : 13 + query[12]].decode("ascii"))
        return asked
