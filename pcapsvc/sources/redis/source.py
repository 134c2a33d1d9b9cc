"""
Requests from a Redis channel.

Redis doesn't acknowledge or keep what is published: whatever is published while this node isn't subscribed is
lost. So the source has to stay subscribed, and to notice when it isn't.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from twisted.application import service
from twisted.internet import defer, error, task
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.line_limit import LineLimit
from pcapsvc.core.message import Message
from pcapsvc.core.source_state import SourceState
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.lost import unshared
from pcapsvc.net.outages import RETRY_SECONDS, Backoff, Outage
from pcapsvc.net.redis import ANSWER_SECONDS, Refused, Silent, described, redis_endpoint
from pcapsvc.sources.redis.frames import MAX_MESSAGE_BYTES
from pcapsvc.sources.redis.library import ResponseError
from pcapsvc.sources.redis.subscriber import SubscriberFactory

#: How often the server is sent a PING.
CHECK_SECONDS = 10.0

# How many skipped messages are logged in each second.
_SKIPPED_PER_SECOND = 1


@implementer(IRequestSource)
class RedisSource(service.Service):
    """
    Submits each message of a channel, and keeps the subscription alive.

    An outage is logged once, and so is its end. The log distinguishes a refusal by Redis (credentials,
    permissions) from a server that can't be reached.

    @ivar name: the name of the source in requests that it submits.
    """

    name = "redis"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sink: IRequestSink,
        *,
        host: str,
        port: int,
        channel: str,
        tls: bool = False,
        ca_file: str | None = None,
        username: str | None = None,
        password: str | None = None,
        check_seconds: float = CHECK_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
        make_endpoint: Callable[[], IStreamClientEndpoint] | None = None,
        chance: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        @param reactor: provides time, TCP and name resolution.
        @param ca_file: the path of the PEM certificates to verify the server's with; L{None} is the
            platform's. It is read at the start.
        @param username: of an ACL user; L{None} is the default user.
        @param check_seconds: see L{CHECK_SECONDS}; likewise C{answer_seconds}.
        @param retry_seconds: the first and the longest pause before connecting again.
        @param make_endpoint: makes what to connect to, in place of C{host} and C{port}.
        @param chance: see L{Backoff}.
        @param wall_clock: returns the time in seconds since the Unix epoch.
        """
        self._reactor = reactor
        self._sink = sink
        self._server = f"{host}:{port}"
        self._channel = channel
        self._username = username
        self._password = password
        self._check_seconds = check_seconds
        self._answer_seconds = answer_seconds
        self._retry_seconds = retry_seconds
        self._make_endpoint = make_endpoint or (
            lambda: redis_endpoint(reactor, host, port, tls=tls, ca_file=ca_file)
        )
        self._chance = chance
        self._lines = LineLimit(_SKIPPED_PER_SECOND)
        self._outage = self._no_outage()
        self._connectivity = Connectivity(wall_clock)
        self._work: defer.Deferred[None] | None = None

    def startService(self) -> None:
        """
        Start connecting.

        @raise SettingsError: if the certificates can't be used.
        """
        endpoint = self._make_endpoint()
        super().startService()  # type: ignore[no-untyped-call]
        self._outage = self._no_outage()
        self._connectivity.started()
        self._work = defer.Deferred.fromCoroutine(self._stay_subscribed(endpoint))
        self._work.addErrback(lambda why: self._log.failure("Redis {server}", why, server=self._server))

    def stopService(self) -> defer.Deferred[None]:
        """
        Disconnect.

        @return: fires when the connection is closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._connectivity.stopped()
        work, self._work = self._work, None
        if work is None:
            return defer.succeed(None)
        work.cancel()
        return work

    def state(self) -> SourceState:
        """Connected while it is subscribed, and Redis has confirmed that. See L{IRequestSource.state}."""
        return self._connectivity.state

    async def _stay_subscribed(self, endpoint: IStreamClientEndpoint) -> None:
        # A ClientService would reset its back-off at each connection, even if the server then refuses the
        # login, and would log each attempt.
        first, longest = self._retry_seconds
        backoff = Backoff(first, longest, chance=self._chance)
        while self.running:
            started = self._reactor.seconds()
            try:
                await self._subscribe_once(endpoint)
            except Exception as problem:  # noqa: BLE001 - whatever it is, there must be another attempt
                if not self.running:
                    return
                self._report(problem)
            # A connection that lasted resets the back-off; one that was cut at once does not.
            if self._reactor.seconds() - started > longest:
                backoff.worked()
            try:
                await task.deferLater(self._reactor, backoff.failed())
            except defer.CancelledError:
                return

    async def _subscribe_once(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect, subscribe, and wait until the connection is lost. Always raises the reason why."""
        factory = SubscriberFactory(self._reactor, self._channel, self._on_message, self._on_skipped)
        connection: Any = await endpoint.connect(factory)
        try:
            if self._password is not None:
                await self._answered("AUTH", connection.auth(self._password, self._username))
            await self._answered("SUBSCRIBE", defer.Deferred.fromCoroutine(connection.subscribe_to_channel()))
            self._connectivity.connected()
            self._outage.ended(f"subscribed to channel {self._channel!r}")
            connection.check_every(self._check_seconds, self._answer_seconds)
            await connection.when_lost()
        except Exception as problem:
            if connection.reason is not None and not isinstance(problem, Refused):
                # txredisapi only says that the connection is lost.
                raise unshared(connection.reason) from None
            raise
        finally:
            connection.close()
            while connection.reason is None:
                try:
                    await connection.when_lost()
                except defer.CancelledError:
                    pass  # The stop also waits for it.
        raise unshared(connection.reason or error.ConnectionLost())

    async def _answered(self, command: str, answer: defer.Deferred[Any]) -> None:
        try:
            await answer.addTimeout(self._answer_seconds, self._reactor)
        except ResponseError as refusal:
            raise Refused(command, str(refusal)) from None
        except defer.TimeoutError:
            raise Silent(f"no answer to {command} within {self._answer_seconds:g} s") from None

    def _no_outage(self) -> Outage:
        return Outage(self._log, f"Redis {self._server}", each_change=True)

    def _report(self, problem: Exception) -> None:
        kind, text = described(problem)
        words = f"not subscribed to channel {self._channel!r}: {text}"
        self._connectivity.failed(words)
        self._outage.report(kind, words)

    def _on_message(self, message: bytes) -> None:
        try:
            verdict = self._sink.submit(Message(source=self.name, body=message))
            if not verdict.called:
                # Redis wants no acknowledgement: the pipeline reports what becomes of the request.
                verdict.addErrback(self._lost)
        except Exception:  # noqa: BLE001 - it would leave the connection open, but deliver nothing more
            self._log.failure("Redis {server}: a message was lost", server=self._server)

    def _on_skipped(self, length: int) -> None:
        if self._lines.may_log(self._reactor.seconds()):
            self._log.warn(
                "Redis {server}: skipped a message of {bytes} bytes on channel {channel!r}; "
                "the limit is {most}{more}",
                server=self._server,
                bytes=length,
                channel=self._channel,
                most=MAX_MESSAGE_BYTES,
                more=f" (and {more} more)" if (more := self._lines.take_suppressed()) else "",
            )

    def _lost(self, failure: Failure) -> None:
        self._log.failure("Redis {server}: a message was lost", failure, server=self._server)
