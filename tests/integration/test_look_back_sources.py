"""What happened before a request, through each source."""

from __future__ import annotations

import re
import time

from peers.frames import number_of, udp_frame
from peers.tcpdump import read_packets
from tests.integration.look_back_case import histories_begun
from tests.integration.test_all_sources import SOURCES, AllSourcesCase, until
from tests.integration.traffic import PATIENT

shared_peer = "Kafka broker"

_EVENT_PACKETS = 2000
_LATER_SECONDS = 2.0


class EventTests(AllSourcesCase):
    """An event, and a request for it that comes later."""

    def test_each_source(self) -> None:
        """All packets of an event are in the file, though each request was sent two seconds later."""
        # Longer than it takes to make the requests, on a busy machine.
        before = 300
        daemon = self.daemon(
            more=f'{PATIENT}[[interface]]\nname = "{self.wire.interface}"\nhistory = {before}\n'
        )
        histories_begun(daemon)
        events: dict[str, int] = {}
        bodies: dict[str, str] = {}
        for source in SOURCES:
            events[source], bodies[source] = self.request(
                daemon, before=before, pastonly=True, packets=10 * _EVENT_PACKETS
            )
        for port in events.values():
            self.wire.send([udp_frame(number, port=port) for number in range(_EVENT_PACKETS)])
        time.sleep(_LATER_SECONDS)
        for source in SOURCES:
            self.send(daemon, source, bodies[source])
        for source, port in events.items():
            words = re.compile(rf"(\w+): capturing on \S+ for {source}, filter 'udp dst port {port}'")
            capture = until(lambda words=words: words.search(daemon.log), f"a request by {source}")[1]  # type: ignore[misc]
            state = daemon.done(capture)
            self.assertEqual((state["reason"], state["source"]), ("past", source))
            numbers = [number_of(packet.data) for packet in read_packets(daemon.file_of(capture))]
            self.assertEqual(numbers, list(range(_EVENT_PACKETS)))
