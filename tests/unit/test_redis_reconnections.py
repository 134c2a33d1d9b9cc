"""Lost connections to Redis leave nothing in memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.net.outages import RETRY_SECONDS
from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.testing import MemorySink
from tests.unit.redis_case import SUBSCRIBED, FakeEndpoint, Transport


class ReconnectionTests(unittest.SynchronousTestCase):
    """L{RedisSource}, disconnected again and again."""

    def test_nothing_is_kept(self) -> None:
        """
        Only the last few lost connections are kept alive, although Twisted raises the same exception
        for all of them. It doesn't matter whether they were subscribed.
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
