"""What is left of connections to Redis that were lost: nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.sources.redis.source import RETRY_SECONDS, RedisSource
from pcapsvc.testing import MemorySink
from tests.unit.test_redis_source import SUBSCRIBED, FakeEndpoint, Transport


class ReconnectionTests(unittest.SynchronousTestCase):
    """L{RedisSource}, cut off again and again."""

    def test_nothing_is_kept(self) -> None:
        """
        No lost connection is kept alive, but the last few, though Twisted gives the same exception
        for all of them; whether it is lost before it is subscribed or after.
        """
        clock, endpoint = Clock(), FakeEndpoint()
        source = RedisSource(
            clock, MemorySink(), host="redis", port=6379, channel="capture", make_endpoint=lambda: endpoint
        )
        source.startService()
        self.addCleanup(source.stopService)
        lost: list[weakref.ref[Any]] = []
        for number in range(50):
            transport: Transport = endpoint.succeed()
            if number % 2:
                transport.say(SUBSCRIBED)
            lost.append(weakref.ref(transport.protocol))
            transport.lose(CONNECTION_LOST)
            transport.protocol = None
            endpoint.attempts[:-1] = []
            del transport
            clock.advance(RETRY_SECONDS[1])
        gc.collect()
        self.assertLessEqual(sum(each() is not None for each in lost), 3)
