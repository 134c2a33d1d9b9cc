"""While the filter of one request is slow to compile, the next request of the same source is armed."""

from __future__ import annotations

import itertools
import json
import time
from statistics import median

from peers.daemon import Daemon
from tests.integration.test_all_sources import BROKERS, AllSourcesCase, until
from tests.integration.test_slow_filters import ENDLESS, children, require_endless

# Requests take longer if the daemon is not scheduled for long enough.
needs_machine_alone = True

#: How long a request may take until it is armed, from the moment when it is sent to its broker.
ARMED_SECONDS = 0.1
# On a busy machine, a request may take so many times as long as without a slow filter, but never as long as
# the optimizer keeps a slow filter from being answered.
_BUSY_FACTOR = 3.0
_SLOW_SECONDS = 2.0
_REQUESTS = 3
_TRIES = 3

# Each try has another filter: programs are remembered.
_filters = itertools.count(1)


class SlowFilterTests(AllSourcesCase):
    """A daemon, and real brokers. HTTP is in L{tests.integration.test_slow_filters}."""

    def setUp(self) -> None:
        """Only if there is such a filter."""
        require_endless()
        super().setUp()
        # Its own would take time to connect for each request.
        self.producer = self.brokers.kafka.producer()
        self.addCleanup(self.producer.close, 5)

    def send(self, daemon: Daemon, source: str, body: str, *, status: int = 202) -> None:
        """Send a request to a source."""
        if source == "kafka":
            self.producer.send(self.topic, body.encode()).get(30)
        else:
            super().send(daemon, source, body, status=status)

    def seconds_to_arm(self, daemon: Daemon, source: str) -> float:
        """How long a request takes until its capture has begun. The next one is sent a little later."""
        port, body = self.request(daemon, timeout=1, bytes=1000)
        began = time.monotonic()
        self.send(daemon, source, body)
        until(lambda: f"filter 'udp dst port {port}'" in daemon.log or None, f"a request by {source}")
        seconds = time.monotonic() - began
        time.sleep(0.1)
        return seconds

    def delays(self, daemon: Daemon, source: str) -> str | None:
        """How a slow filter has delayed others, in one try; L{None} if it hasn't."""
        alone = [self.seconds_to_arm(daemon, source) for _ in range(_REQUESTS)]
        slow = ENDLESS.replace("10.0.0.1", f"10.0.1.{next(_filters)}")
        _, body = self.request(daemon, timeout=1, bytes=1000)
        self.send(daemon, source, json.dumps({**json.loads(body), "bpf": slow}))
        until(lambda: children(daemon.pid) or None, "a process that compiles")
        is_armed = f"for {source}, filter '{slow}'"
        beside: list[float] = []
        while len(beside) < _REQUESTS:
            seconds = self.seconds_to_arm(daemon, source)
            if is_armed in daemon.log:
                break
            beside.append(seconds)
        until(lambda: is_armed in daemon.log or None, "the slow request")
        limit = max(ARMED_SECONDS, min(_BUSY_FACTOR * median(alone), _SLOW_SECONDS / 2))
        if beside and median(beside) <= limit:
            return None
        return f"armed after {beside} s, alone after {alone} s"

    def connected(self, *, group: str = "") -> Daemon:
        """A daemon whose sources are all connected."""
        # A source pays for a slow filter with a few seconds in which its requests are busy.
        return self.daemon(general="maxrequestrate = 0", group=group)

    def assert_not_delayed(self, daemon: Daemon, source: str) -> None:
        """Requests are armed beside a slow one, which captures as well in the end."""
        problems: list[str] = []
        while len(problems) < _TRIES:
            if (problem := self.delays(daemon, source)) is None:
                return
            problems.append(problem)
        self.fail(f"{source}: {problems}")

    def test_brokers(self) -> None:
        """Redis, Kafka and SQS, one after the other: a daemon takes longer to connect than to try one."""
        daemon = self.connected()
        for source in BROKERS:
            self.assert_not_delayed(daemon, source)

    def test_kafka_group(self) -> None:
        """Kafka, with a group."""
        self.assert_not_delayed(self.connected(group="slow"), "kafka")
