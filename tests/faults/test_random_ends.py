"""
The daemon is stopped, or killed, at random instants, with a lot to do: nothing that it kept is
lost, and nothing arrives in pieces, or twice.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer, accept, hang, refuse, reset
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.chance import SEED, VARIABLE, chance

_ROUNDS = 8
# A stop waits for the spool for a quarter of it; a hurried one for an eighth.
_STOP_SECONDS = 20
# The longest time from when a daemon has begun enough captures to its end.
_MOMENT_SECONDS = 0.1
# The longest time from the beginning of a stop to a second signal.
_HURRY_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
_ID = r"([0-9a-f]{12})"


class RandomEndCase(SynchronousTestCase):
    """
    One daemon after the other, in processes of their own, with one spool, and a server that fails.

    @cvar most_begun: the most captures that a daemon has begun before its end.
    """

    most_begun = 30

    def setUp(self) -> None:
        """A wire, a server, and a spool."""
        self.seed = f"{VARIABLE}={SEED}"
        self.chance = chance(self.id())
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.server = CloudSharkServer()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.spool, self.directory = (Path(self.mktemp()).absolute() for _ in range(2))
        self.spool.mkdir()
        self.directory.mkdir()
        self.daemons: list[Daemon] = []

    def start(self) -> Daemon:
        """The next daemon."""
        daemon = Daemon(
            f'[delivery]\nspooldir = "{self.spool}"\nattempts = 1\nretryinterval = 1\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {self.server.port}\n'
            f'token = "{self.server.token}"\nverify = "{self.server.ca_file}"\n'
            f'[capture]\nstandby = ["{self.wire.interface}"]\n',
            general=f"stoptimeout = {_STOP_SECONDS}",
        )
        self.addCleanup(daemon.stop)
        # All have one directory.
        daemon.captures.rmdir()
        daemon.captures.symlink_to(self.directory)
        daemon.start()
        self.daemons.append(daemon)
        return daemon

    def work(self, daemon: Daemon, stopped: threading.Event, seed: float) -> None:
        """Requests and packets, until the daemon has ended."""
        own = random.Random(seed)
        while not stopped.wait(0.02):
            message = {"node": "any", "interface": [self.wire.interface], "packets": own.randint(1, 4)}
            try:
                daemon.request("POST", "/captures", json.dumps(message).encode())
            except (OSError, http.client.HTTPException, ValueError):
                pass  # it has ended, or ends
            self.wire.send([udp_frame(number) for number in range(own.randint(0, 3))])

    def end_at_random(self, daemon: Daemon, *numbers: int) -> int:
        """Give it work, until it has begun with some of it, and then these signals. Its exit status."""
        stopped = threading.Event()
        worker = threading.Thread(target=self.work, args=(daemon, stopped, self.chance.random()))
        worker.start()
        try:
            # By what it has done, and not by time: on a busy machine it would get nothing done.
            enough = self.chance.randint(0, self.most_begun)
            daemon.until(lambda: daemon.log.count(": capturing on") >= enough or None, f"{enough} captures")
            time.sleep(self.chance.uniform(0, _MOMENT_SECONDS))
            for number in numbers:
                daemon.signal(number)
                time.sleep(self.chance.uniform(0, _HURRY_SECONDS))
            return daemon.wait()
        finally:
            stopped.set()
            worker.join()

    def drain(self) -> None:
        """A daemon more, and a server that takes all: the spool becomes empty."""
        self.server.behave(accept())
        daemon = self.start()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.waiting("cloudshark") + self.waiting("local"):
            self.assertLess(time.monotonic(), deadline, daemon.log)
            time.sleep(0.05)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLessEqual({path.name for path in self.spool.iterdir()}, {"lock", "broken"}, self.seed)

    def logged(self, words: str) -> Counter[str]:
        """The captures of which any daemon logged something, and how often."""
        return Counter(id for daemon in self.daemons for id in re.findall(f"{_ID}: {words}", daemon.log))

    def waiting(self, destination: str) -> Counter[str]:
        """The captures in the spool, for a destination."""
        return Counter(path.name.split("-")[1] for path in self.spool.glob(f"[0-9]*-{destination}"))

    def files(self) -> dict[str, bytes]:
        """What is in the directory, by the captures' ids: all of it whole, and each once."""
        found: dict[str, bytes] = {}
        for path in self.directory.glob("[!.]*"):
            self.assertTrue(read_packets(path))
            id = path.stem.rpartition("-")[2]
            self.assertNotIn(id, found, self.seed)
            found[id] = path.read_bytes()
        return found

    def uploads(self) -> list[tuple[str, bytes]]:
        """What reached the server, by the captures' ids: all of it whole, and what the directory has."""
        files, path = self.files(), Path(self.mktemp())
        found = []
        for upload in self.server.uploads():
            if upload.filename is None:
                continue
            id = upload.filename.removesuffix(".pcap").rpartition("-")[2]
            path.write_bytes(upload.data)
            self.assertTrue(read_packets(path))
            self.assertEqual(files.get(id, upload.data), upload.data, self.seed)
            found.append((id, upload.data))
        return found


class RandomStopTests(RandomEndCase):
    """SIGTERM and SIGINT."""

    # What has just begun must all get into the spool within the time for that, also if the disk is busy.
    most_begun = 16

    def test_stop(self) -> None:
        """Each capture is delivered, or waits in the spool, exactly once; eventually it is delivered."""
        behaviours = [accept(), accept(delay_seconds=0.2), refuse(503), hang()] * (_ROUNDS // 4)
        self.chance.shuffle(behaviours)
        for behaviour in behaviours:
            self.server.behave(behaviour)
            numbers = self.chance.choices([signal.SIGTERM, signal.SIGINT], k=self.chance.randint(1, 2))
            self.assertEqual(self.end_at_random(self.start(), *numbers), 0, self.seed)
            self.assert_all_there()
        self.drain()
        self.assert_all_there()
        self.assertEqual(self.files().keys(), {id for id, _ in self.uploads()}, self.seed)
        self.assertFalse((self.spool / "broken").exists(), self.seed)
        # It had something to do.
        self.assertGreater(len(self.files()), _ROUNDS // 2)
        self.assertTrue(self.logged("not delivered to cloudshark yet"), self.seed)

    def assert_all_there(self) -> None:
        """Each capture has ended; with packets, it is at each destination or in the spool, once."""
        ended, empty = self.logged("stopped, as"), self.logged("stopped, as [a-z ]+: 0 packets")
        self.assertEqual(ended, self.logged("capturing on"), self.seed)
        kept = ended - empty
        for destination in ("local", "cloudshark"):
            found = self.logged(f"delivered to {destination}") + self.waiting(destination)
            self.assertEqual(found, kept, f"{destination} {self.seed} {self.daemons[-1].log}")
        # What is spooled for the directory may have got there, too, as it was given up at the last moment.
        self.assertLessEqual(self.files().keys(), kept.keys(), self.seed)
        self.assertLessEqual(kept.keys(), self.files().keys() | self.waiting("local").keys(), self.seed)


class RandomKillTests(RandomEndCase):
    """SIGKILL."""

    def test_kill(self) -> None:
        """What was logged to be in the spool is there, or delivered; and nothing is delivered twice."""
        for _ in range(_ROUNDS):
            # Either the server takes a capture, or it doesn't see all of it.
            self.server.behave(*self.chance.choices([accept(), reset(0)], k=20), reset(0))
            status = self.end_at_random(self.start(), signal.SIGKILL)
            self.assertEqual(status, -signal.SIGKILL)
            self.server_is_done()
            self.assert_kept()
        self.drain()
        self.assert_kept()
        self.assertTrue(self.logged("not delivered to cloudshark yet"), self.seed)
        self.assertEqual(set(self.logged("delivered to cloudshark").values()), {1}, self.seed)
        # The next daemon asks the server for what the one before may have brought there.
        self.assertEqual(set(Counter(id for id, _ in self.uploads()).values()), {1}, self.seed)

    def server_is_done(self) -> None:
        """Wait until the server has read whatever was sent to it, and knows what it has."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.server.is_idle():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def assert_kept(self) -> None:
        """What was logged to be in the spool is there, or at the server."""
        taken = {id for id, _ in self.uploads()}
        for words in ("not delivered to cloudshark yet, and kept in the spool", "delivered to cloudshark"):
            self.assertLessEqual(
                self.logged(words).keys(), taken | self.waiting("cloudshark").keys(), f"{words} {self.seed}"
            )
