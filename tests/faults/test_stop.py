"""
The daemon is stopped or killed while captures are being delivered: they arrive in the end.
And what signals do to an idle daemon, from its start to its end.
"""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer, accept, hang, refuse
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire

# A stop waits for the spool for a quarter of it.
_STOP_SECONDS = 12

# How long after the first signal the second one comes, and the third after that: while the daemon stops,
# while the interpreter ends, and when it has ended.
_DELAYS_SECONDS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15)


class Reloaded(Daemon):
    """
    A daemon that gets SIGHUP all the time while it starts, from when it ignores it.

    @ivar late: whether it had loaded libpcap before.
    """

    late = False

    def _answers(self) -> bool:
        # In this order: what is loaded now may be ignored a moment later.
        loaded = "/pcapy" in Path(f"/proc/{self.pid}/maps").read_text()
        status = Path(f"/proc/{self.pid}/status").read_text()
        handled = [line for line in status.splitlines() if line.startswith(("SigIgn", "SigCgt"))]
        # proc(5): the lowest bit is signal 1.
        if any(int(line.split()[1], 16) & 1 << signal.SIGHUP - 1 for line in handled):
            self.signal(signal.SIGHUP)
        else:
            self.late = self.late or loaded
        return super()._answers()


class IdleTests(SynchronousTestCase):
    """A daemon with nothing to do."""

    def test_signals_after_the_first(self) -> None:
        """Whenever further signals arrive while it stops, its exit status is 0."""
        orders = itertools.permutations([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        for delay, further in zip(_DELAYS_SECONDS, itertools.cycle(orders), strict=False):
            daemon = Daemon()
            self.addCleanup(daemon.stop)
            daemon.start()
            daemon.signal(signal.SIGTERM)
            for number in further:
                time.sleep(delay)
                daemon.signal(number)
            self.assertEqual(daemon.wait(), 0, f"{further} {delay} s apart: {daemon.log}")
            self.assertIn("Server Shut Down", daemon.log)

    def test_reload_at_the_start(self) -> None:
        """SIGHUP doesn't end a daemon that is starting, not even before it has loaded its libraries."""
        daemon = Reloaded()
        self.addCleanup(daemon.stop)
        daemon.start(is_cold=True)
        self.assertFalse(daemon.late)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)

    def test_descriptors(self) -> None:
        """It may have as many descriptors as the hard limit allows, whatever the soft limit is."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start("sh", "-c", 'ulimit -S -n 256; ulimit -H -n 5000; exec "$@"', "sh")
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        self.assertRegex(limits, "(?m)^Max open files +5000 +5000 ")
        self.assertNotIn("the limit of open files", daemon.log)

    def test_few_descriptors(self) -> None:
        """If the hard limit is low, that is logged."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
        daemon.logged("the limit of open files is 256")


class StopTests(SynchronousTestCase):
    """The daemon in its own process, real packets on a wire, and an upload that fails."""

    def setUp(self) -> None:
        """A wire, a server, and a spool."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.server = CloudSharkServer()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.spool = Path(self.mktemp()).absolute()
        self.spool.mkdir()

    def daemon(self, *, stop_seconds: int = _STOP_SECONDS, **delivery: Any) -> Daemon:
        """A daemon, started."""
        keys = "".join(f"{name} = {value}\n" for name, value in delivery.items())
        daemon = Daemon(
            f'[delivery]\nspooldir = "{self.spool}"\n{keys}'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {self.server.port}\n'
            f'token = "{self.server.token}"\nverify = "{self.server.ca_file}"\n',
            general=f"stoptimeout = {stop_seconds}",
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def entries(self) -> list[Path]:
        """The captures in the spool."""
        return sorted(self.spool.glob("*-cloudshark"))

    def uploads(self) -> list[Any]:
        """What reached the server whole."""
        return [upload for upload in self.server.uploads() if upload.filename is not None]

    def test_stop(self) -> None:
        """What hangs, waits for a slot, or was just captured is spooled in time, and delivered later."""
        self.stops(spooled_before=2)

    def test_stop_from_memory(self) -> None:
        """So it is if nothing is spooled before its first attempt."""
        self.stops(spooled_before=0, spoolfirst="false")

    def stops(self, *, spooled_before: int, **delivery: Any) -> None:
        """Stop a daemon while a destination hangs, and start another."""
        self.server.behave(hang())
        daemon = self.daemon(concurrency=1, **delivery)
        captures = [daemon.capture(interface=[self.wire.interface], packets=10) for _ in range(2)]
        self.wire.send([udp_frame(number) for number in range(10)])
        for capture in captures:
            daemon.logged(f"{capture}: delivered to local")
        captures.append(daemon.capture(interface=[self.wire.interface], timeout=60))
        self.wire.send([udp_frame(number) for number in range(5)])
        time.sleep(0.2)
        daemon.until(lambda: len(self.entries()) == spooled_before or None, f"{spooled_before} in the spool")
        stopped = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - stopped, _STOP_SECONDS + 10)
        self.assertEqual(len(self.entries()), 3, daemon.log)
        for capture in captures:
            self.assertIn(f"{capture}: not delivered to cloudshark yet, and kept in the spool", daemon.log)
        self.assertNotIn("lost", daemon.log)
        local = {path.name: path.read_bytes() for path in daemon.captures.iterdir()}
        before = len(self.uploads())

        self.server.behave(accept())
        again = self.daemon()
        for capture in captures:
            again.logged(f"{capture}: delivered to cloudshark")
        self.assertEqual({upload.filename: upload.data for upload in self.uploads()[before:]}, local)
        self.assertEqual(len(self.uploads()), before + 3)
        self.assertEqual(self.entries(), [])
        packets = sorted(len(read_packets(path)) for path in daemon.captures.iterdir())
        self.assertEqual(packets, [5, 10, 10])

    def test_second_signal(self) -> None:
        """A second signal hurries: what is being delivered is spooled immediately."""
        self.server.behave(hang())
        daemon = self.daemon(stop_seconds=30)
        capture = daemon.capture(interface=[self.wire.interface], packets=1)
        self.wire.send([udp_frame(1)])
        daemon.logged(f"{capture}: delivered to local")
        stopped = time.monotonic()
        daemon.signal(signal.SIGTERM)
        time.sleep(0.3)
        daemon.signal(signal.SIGINT)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - stopped, 15)
        self.assertEqual(len(self.entries()), 1)

    def test_stop_with_nothing_in_its_way(self) -> None:
        """If deliveries succeed, a stop takes no longer than they do, and spools nothing."""
        self.server.behave(accept(delay_seconds=0.5))
        daemon = self.daemon(stop_seconds=30)
        capture = daemon.capture(interface=[self.wire.interface], timeout=60)
        self.wire.send([udp_frame(1)])
        time.sleep(0.2)
        stopped = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - stopped, 15)
        self.assertIn(f"{capture}: delivered to cloudshark", daemon.log)
        self.assertEqual((len(self.uploads()), self.entries()), (1, []))

    def test_killed(self) -> None:
        """What was spooled when the daemon is killed is delivered after the next start, once."""
        self.server.behave(refuse(503, "Busy"))
        daemon = self.daemon(attempts=1)
        capture = daemon.capture(interface=[self.wire.interface], packets=1)
        self.wire.send([udp_frame(1)])
        state = daemon.done(capture)
        self.assertEqual(
            {one["destination"]: one["state"] for one in state["deliveries"]},
            {"local": "delivered", "cloudshark": "spooled"},
        )
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        self.server.behave(accept())
        before = len(self.uploads())
        again = self.daemon()
        again.logged(f"{capture}: delivered to cloudshark")
        self.assertEqual(len(self.uploads()), before + 1)
        again.signal(signal.SIGKILL)
        again.wait()
        last = self.daemon()
        last.logged("the spool holds 0 captures")
        self.assertEqual(len(self.uploads()), before + 1)

    def test_killed_before_the_answer(self) -> None:
        """What the server accepted just before the daemon was killed is not uploaded again."""
        self.server.behave(accept(delay_seconds=30))
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], packets=1)
        self.wire.send([udp_frame(1)])
        daemon.until(lambda: self.server.captures() or None, "the upload")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        self.assertEqual(len(self.entries()), 1)
        self.server.behave(accept())
        self.daemon().logged(f"{capture}: delivered to cloudshark")
        self.assertEqual(len(self.server.captures()), 1)
        self.assertEqual(self.entries(), [])
