"""The past of an interface, in the files of captures: a daemon that records a real wire all the time."""

from __future__ import annotations

import json
import time

from peers.daemon import Daemon
from peers.tcpdump import read_packets
from tests.integration.look_back_case import LookBackCase
from tests.integration.traffic import PATIENT, Sender


class LookBackTests(LookBackCase):
    """What is in the files of captures that look back, on one wire."""

    def test_past_only(self) -> None:
        """What was sent before a request is in its file, which is there at once."""
        daemon = self.start()
        self.send(*range(100))
        capture = self.capture(daemon, pastonly=True)
        state = daemon.done(capture)
        self.assertEqual(self.numbers(daemon.file_of(capture)), list(range(100)))
        self.assertEqual((state["reason"], state["packets"]), ("past", 100))
        self.assertEqual((state["history"]["requested"], state["history"]["packets"]), (30, 100))

    def test_past_and_live(self) -> None:
        """A capture goes on where the past ends: no packet is missing, and none is there twice."""
        daemon = self.start(more=PATIENT, general="maxpackets = 1000000")
        sender = Sender(self.wire)
        self.addCleanup(sender.stop)
        self.remembered(daemon, 2000)
        captures = [self.capture(daemon, bpf=bpf) for bpf in ("", "udp port 9", "udp port 10")]
        began = sender.sent
        for capture in captures[:2]:
            self.has_packets(daemon, capture, began + 2000)
        sender.stop()
        for capture in captures[:2]:
            self.has_packets(daemon, capture, sender.sent)
            state = daemon.read(capture)
            self.assertEqual(self.numbers(daemon.file_of(capture)), list(range(sender.sent)))
            self.assertTrue(2000 <= state["history"]["packets"] < sender.sent, state)
        self.assertEqual(daemon.read(captures[2])["packets"], 0)

    def has_packets(self, daemon: Daemon, capture: str, packets: int) -> None:
        """Wait until a capture has so many packets, at least."""
        path = f"/captures/{capture}"
        daemon.until(
            lambda: daemon.request("GET", path)[1]["packets"] >= packets or None, f"{packets} packets"
        )

    def test_limits(self) -> None:
        """If not everything fits, the newest packets are used, and the result says since when."""
        # Longer than the daemon will have run, on a busy machine as well.
        before = 300
        daemon = self.start(f"history = {2 * before}")
        self.send(*range(1000))
        self.remembered(daemon, 1000)
        size = 16 + 128
        for limit, last in (
            ({"packets": 10}, 10),
            ({"bytes": 24 + 20 * size + 1}, 20),
            ({"bytes": 24 + 20 * size + 1, "bpf": "udp port 9"}, 20),
            ({"packets": 7, "bpf": "udp port 9"}, 7),
        ):
            capture = self.capture(daemon, before=before, **limit)
            state = daemon.done(capture)
            self.assertEqual(self.numbers(daemon.file_of(capture)), list(range(1000))[-last:])
            self.assertEqual(state["reason"], "packets" if "packets" in limit else "bytes")
            self.assertEqual([each["reason"] for each in state["history"]["missing"]], ["started", "limit"])

    def test_limits_after_the_past(self) -> None:
        """The limits are exact, too, if they are reached by packets that arrive later."""
        daemon = self.start()
        self.send(*range(40))
        self.remembered(daemon, 40)
        size = 16 + 128
        for number, limit in enumerate(({"packets": 60}, {"bytes": 24 + 60 * size})):
            capture = self.capture(daemon, bpf="udp port 9", **limit)
            begin = 100 * number
            self.send(*range(1000, 1100), port=10)
            self.send(*range(2000 + begin, 2050 + begin))
            state = daemon.done(capture)
            self.assertEqual((state["packets"], state["reason"]), (60, *limit))
            found = self.numbers(daemon.file_of(capture))
            self.assertEqual(found, sorted(found))
            self.assertFalse([each for each in found if 1000 <= each < 1100])

    def test_snap_length(self) -> None:
        """Packets are cut to the snap length of the request, after its filter has seen them."""
        daemon = self.start("history = 60\nhistorysnap = 100")
        self.send(*range(20))
        capture = self.capture(daemon, pastonly=True, snap=40, bpf="udp[15] = 7 or udp[15] = 8")
        daemon.done(capture)
        packets = read_packets(daemon.file_of(capture))
        self.assertEqual([(len(packet.data), packet.length) for packet in packets], [(40, 128)] * 2)

    def test_no_history(self) -> None:
        """An interface without history can't look back, unless the request does without."""
        daemon = self.start()
        body = {"node": daemon.node, "interface": ["lo"], "before": 5, "duration": 1, "bpf": "udp port 9"}
        status, answer = daemon.request("POST", "/captures", json.dumps(body).encode())
        self.assertEqual((status, answer["problems"][0]["path"]), (400, "before"))
        state = daemon.done(daemon.capture(**{**body, "beforeoptional": True}))
        self.assertEqual(state["history"]["missing"], [{"reason": "none", "seconds": 5, "packets": None}])

    def test_interface_goes_and_comes(self) -> None:
        """What was recorded before an interface was down, or away, stays; and it is recorded again."""
        daemon = self.start()
        self.send(1, 2)
        self.remembered(daemon, 2)
        self.wire.down()
        daemon.until(lambda: self.history(daemon)["problem"], "the interface to be down")
        time.sleep(1)
        self.wire.up()
        daemon.until(lambda: self.history(daemon)["problem"] is None or None, "the interface to be up")
        self.send(3)
        self.remembered(daemon, 3)
        self.wire.delete()
        daemon.until(lambda: self.history(daemon)["problem"], "the interface to be gone")
        self.assertEqual(self.history(daemon)["packets"], 3)
        capture = self.past(daemon)
        self.assertEqual(self.numbers(daemon.file_of(capture)), [1, 2, 3])
        self.wire.make()
        daemon.until(lambda: self.history(daemon)["problem"] is None or None, "the interface to be back")
        self.send(4)
        self.remembered(daemon, 4)
        capture = self.past(daemon)
        self.assertEqual(self.numbers(daemon.file_of(capture)), [1, 2, 3, 4])
        missing = {each["reason"]: each["seconds"] for each in daemon.done(capture)["history"]["missing"]}
        self.assertTrue(1 <= missing["down"] < 30, missing)
