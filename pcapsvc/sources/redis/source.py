"""
Requests from a channel of Redis.

Publishing has no acknowledgement: what is published while we are not
subscribed is lost, and what comes of a request is no concern of its sender's.
So this source's whole duty is to be subscribed, and to notice when it is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.application import service
from twisted.internet import defer, error, protocol, task
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError, SubscriberProtocol

from pcapsvc.core.errors import Problem, SettingsError
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.net.tls import tls_problem, verified_tls
from pcapsvc.sources.polling import RETRY_SECONDS, Backoff, Outage

#: How long a server has to accept a connection. TCP itself tries more and more rarely: when the network is
#: back, a new attempt comes through sooner, and what is published until then is lost.
CONNECT_SECONDS = 5.0

#: How often a server that is silent is asked whether it is there.
CHECK_SECONDS = 10.0

#: How long it has to answer.
ANSWER_SECONDS = 5.0

#: How much later it is judged, so that what has arrived meanwhile is read.
GRACE_SECONDS = 0.1

#: How long a connection has to say goodbye.
CLOSE_SECONDS = 1.0

#: The longest message that is kept until it is whole. A longer one ends its connection: Redis would take
#: half a gigabyte (proto-max-bulk-len), and a request has 64 KiB at most.
MAX_MESSAGE_BYTES = 1024 * 1024


class RedisSource(service.Service):
    """
    Submits each message of a channel, and stays subscribed to it for ever.

    An outage is told once, and so is its end: what Redis itself refuses
    (credentials, rights) is told apart from a server that can't be reached.

    @ivar name: what the sink hears as the source.
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
    ) -> None:
        """
        @param reactor: provides time, and for connections by name, TCP and name resolution.
        @param ca_file: path of the PEM certificates to verify the server's with; L{None}
            is the platform's. It is read at the start.
        @param username: of an ACL user; L{None} is the default user.
        @param check_seconds: see L{CHECK_SECONDS}; likewise the others.
        @param make_endpoint: what to connect to, in place of C{host} and C{port}.
        @param retry_seconds: how long to wait before connecting again: at first, and at most.
        @param chance: see L{Backoff}.
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
        self._make_endpoint = make_endpoint or (lambda: _endpoint(reactor, host, port, tls, ca_file))
        self._chance = chance
        self._outage = self._no_outage()
        self._work: defer.Deferred[None] | None = None

    def startService(self) -> None:
        """
        Begin to connect.

        @raise SettingsError: where the certificates can't be read.
        """
        endpoint = self._make_endpoint()
        super().startService()  # type: ignore[no-untyped-call]
        self._outage = self._no_outage()
        self._work = defer.Deferred.fromCoroutine(self._stay_subscribed(endpoint))
        self._work.addErrback(lambda why: self._log.failure("Redis {server}", why, server=self._server))

    def stopService(self) -> defer.Deferred[None]:
        """
        Disconnect.

        @return: fires when the connection is closed, and nothing is left to come.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        work, self._work = self._work, None
        if work is None:
            return defer.succeed(None)
        work.cancel()
        return work

    async def _stay_subscribed(self, endpoint: IStreamClientEndpoint) -> None:
        # A ClientService would forget its back-off whenever a connection is
        # made, though the server then refuses us, and would log each attempt.
        first, longest = self._retry_seconds
        backoff = Backoff(first, longest, chance=self._chance)
        while self.running:
            began = self._reactor.seconds()
            try:
                await self._subscribe_once(endpoint)
            except Exception as problem:  # noqa: BLE001 - whatever it is, the next attempt must come
                if not self.running:
                    return
                self._tell(problem)
            # A connection that lasts earns a fresh start; one that is always cut at once does not.
            if self._reactor.seconds() - began > longest:
                backoff.worked()
            try:
                await task.deferLater(self._reactor, backoff.failed())
            except defer.CancelledError:
                return

    async def _subscribe_once(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect, and stay until the connection is lost. Always raises: the reason why it ended."""
        factory = _Factory(lambda: _Subscriber(self._reactor, self._hear))
        connection: Any = await endpoint.connect(factory)
        try:
            if self._password is not None:
                await self._answer_to("AUTH", connection.auth(self._password, self._username))
            await self._answer_to("SUBSCRIBE", connection.subscribe(self._channel))
            self._outage.over(f"subscribed to channel {self._channel!r}")
            connection.check_every(self._check_seconds, self._answer_seconds)
            await connection.when_lost()
        except Exception as problem:
            if connection.reason is not None and not isinstance(problem, _Refused):
                # txredisapi knows only that the connection is lost.
                raise _afresh(connection.reason) from None
            raise
        finally:
            connection.close()
            while connection.reason is None:
                try:
                    await connection.when_lost()
                except defer.CancelledError:
                    pass  # The stop waits for it, too.
        raise _afresh(connection.reason or error.ConnectionLost())

    async def _answer_to(self, command: str, answer: defer.Deferred[Any]) -> None:
        try:
            await answer.addTimeout(self._answer_seconds, self._reactor)
        except ResponseError as refusal:
            raise _Refused(command, str(refusal)) from None
        except defer.TimeoutError:
            raise _Silent(f"no answer to {command} for {self._answer_seconds:g} s") from None

    def _no_outage(self) -> Outage:
        return Outage(self._log, f"Redis {self._server}", each_change=True)

    def _tell(self, problem: Exception) -> None:
        kind, text = _described(problem)
        self._outage.tell(kind, f"not subscribed to channel {self._channel!r}: {text}")

    def _hear(self, message: bytes) -> None:
        try:
            self._sink.submit(self.name, message)
        except Exception:  # noqa: BLE001 - an exception here would leave the connection up, and deaf
            self._log.failure("Redis {server}: a message was lost", server=self._server)


def _endpoint(reactor: Any, host: str, port: int, tls: bool, ca_file: str | None) -> IStreamClientEndpoint:
    """
    Where a server is. With TLS, its certificate is verified, and must be for C{host}.

    @raise SettingsError: where C{ca_file} can't be read, or C{host} can't be in a certificate.
    """
    plain: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, timeout=CONNECT_SECONDS)
    if not tls:
        return plain
    try:
        creator = verified_tls(host, ca_file)
    except UnusableCertificates as problem:
        raise SettingsError(
            [Problem(path="redis.cafile", value=repr(ca_file), rule=problem.rule)]
        ) from problem
    except ValueError as problem:
        rule = f"must be a name that a certificate can have ({problem})"
        raise SettingsError([Problem(path="redis.host", value=repr(host), rule=rule)]) from problem
    wrapped: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return wrapped


def _afresh(reason: Exception) -> Exception:
    """
    An exception, without where it was raised before. Twisted has one for all connections that end: it
    would remember each, and keep every one of them alive.
    """
    return reason.with_traceback(None)


class _Silent(Exception):
    """The server is connected, and says nothing."""


class _Nonsense(Exception):
    """What came is not what Redis says."""


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, command: str, answer: str) -> None:
        super().__init__(answer)
        self.command = command
        self.code = answer.split(" ", 1)[0]


_REFUSALS = {
    "WRONGPASS": "the user name or the password is wrong",
    "NOAUTH": "it wants a password, and none is set",
    "NOPERM": "the user has no right to this channel",
}
# To AUTH, in words of every kind (Redis, acl.c, authCommand; before 6.0, server.c).
_ERR_TO_AUTH = "the server has no password set, or knows no user names, or no AUTH"


_LOST = (OSError, error.ConnectError, error.ConnectionClosed, _Silent, _Nonsense)


def _described(problem: Exception) -> tuple[str, str]:
    """What kind of problem this is, which is told again only where it changes; and the problem in words."""
    if isinstance(problem, _Refused):
        said = _REFUSALS.get(problem.code)
        if said is None and problem.command != "AUTH":
            said = str(problem)
        elif said is None and problem.code == "ERR":
            said = _ERR_TO_AUTH
        # To AUTH, an answer in the server's own words might repeat the password.
        return problem.code, f"{problem.command} was refused ({said or problem.code})"
    if (words := tls_problem(problem)) is not None:
        return "tls", f"TLS failed: {words}"
    if isinstance(problem, _LOST):
        return "connection", str(problem).strip().rstrip(".")
    # Its own words may hold a secret.
    return "unforeseen", f"it failed ({type(problem).__name__})"


class _Factory(protocol.Factory[Any]):
    noisy = False

    def __init__(self, build: Callable[[], _Subscriber]) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Any:
        return self._build()


class _Subscriber(SubscriberProtocol):  # type: ignore[misc] # txredisapi has no types
    """
    A connection of a subscriber. What it hears is read by hiredis, which
    txredisapi uses where it is installed.

    @ivar reason: why the connection was lost; L{None} while it is not.
    """

    def __init__(self, clock: Any, hear: Callable[[bytes], None]) -> None:
        super().__init__(charset=None, convertNumbers=False)
        # In place of the global reactor's, which is a class attribute there.
        self.callLater = clock.callLater
        self.reason: Exception | None = None
        self._hear = hear
        self._heard = False
        self._unread_bytes = 0
        self._complaint: Exception | None = None
        self._timer: Any = None
        self._waiting: list[defer.Deferred[None]] = []

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        self._heard = True
        if self._complaint is not None:
            return
        self._unread_bytes += len(data)
        try:
            super().dataReceived(data)
        except Exception as problem:  # noqa: BLE001 - and the next connection starts afresh
            self._give_up(_Nonsense(f"it said nonsense ({problem})"))
            return
        if self._unread_bytes > MAX_MESSAGE_BYTES:
            self._give_up(_Nonsense(f"it began a message of more than {MAX_MESSAGE_BYTES} bytes"))

    def replyReceived(self, reply: Any) -> None:
        self._unread_bytes = 0
        super().replyReceived(reply)

    def messageReceived(self, pattern: bytes | None, channel: bytes, message: bytes) -> None:
        self._hear(message)

    def connectionLost(self, why: Failure) -> None:
        cause = self._complaint or why.value
        self.reason = cause if isinstance(cause, Exception) else error.ConnectionLost(str(cause))
        self._set_timer(None)
        super().connectionLost(why)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)

    def when_lost(self) -> defer.Deferred[None]:
        """Fires when the connection is lost. To cancel it is to hear no more of it."""
        if self.reason is not None:
            return defer.succeed(None)
        self._waiting.append(defer.Deferred())
        return self._waiting[-1]

    def close(self) -> None:
        """Close the connection, at last by force."""
        if self.reason is None:
            self._set_timer(self.callLater(CLOSE_SECONDS, self._abort))
            self.transport.loseConnection()

    def check_every(self, seconds: float, answer_seconds: float) -> None:
        """Give the connection up where the server is not heard for so long after it was asked."""
        if self.reason is not None:
            return

        def ask() -> None:
            self._heard = False
            self.ping().addErrback(lambda lost: None)
            self._set_timer(self.callLater(answer_seconds, look_once_more))

        def look_once_more() -> None:
            # The answer may wait in the socket, where it was us who were too
            # busy: the reactor reads it before it makes a later call.
            self._set_timer(self.callLater(GRACE_SECONDS, judge))

        def judge() -> None:
            if self._heard:
                self._set_timer(self.callLater(max(0.0, seconds - answer_seconds - GRACE_SECONDS), ask))
            else:
                self._give_up(_Silent(f"no answer to PING for {answer_seconds:g} s"))

        self._set_timer(self.callLater(seconds, ask))

    def _give_up(self, complaint: Exception) -> None:
        self._complaint = complaint
        self._set_timer(None)
        self.transport.abortConnection()

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _set_timer(self, timer: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = timer
