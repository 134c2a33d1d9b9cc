"""The real packet system, for tests of filters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial import unittest

from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from peers.wire import within

reactor: Any = global_reactor


class RealPacketsCase(unittest.TestCase):
    """
    The parts of the daemon that compile filters, open handles, and run filters on packets that were recorded.

    @cvar read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @ivar namespace: the network namespace in which handles are opened; L{None} for that of the test.
    """

    read_timeout_ms = 10
    namespace: str | None = None
    maxDiff = None

    def setUp(self) -> None:
        """Start them."""
        self.threads = Threads(reactor)
        self.compiler = FilterCompiler(reactor, libpcap_path())
        self.system = PcapySystem(
            compiler=self.compiler,
            run_in_thread=self.in_thread,
            buffer_size_bytes=2 << 20,
            read_timeout_ms=self.read_timeout_ms,
            promiscuous=True,
        )
        for service in (self.threads, self.compiler, self.system):
            service.startService()

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Where the packet system does what takes long."""
        if self.namespace is None:
            return self.threads.run(function, *args)
        return self.threads.run(within, self.namespace, partial(function, *args))

    async def tearDown(self) -> None:
        """Stop them."""
        for service in (self.system, self.compiler, self.threads):
            await maybeDeferred(service.stopService)
