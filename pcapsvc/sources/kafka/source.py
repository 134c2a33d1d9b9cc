"""
Requests from a topic of Kafka.

A topic keeps its messages, so this source's duty is to know where it is: it
begins at the newest offset, and from there on misses nothing, whatever becomes
of brokers and connections. Without a group, what a node has read is in its
memory only; nodes of one group share the messages, and commit to the brokers
what they have submitted.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from kafka import errors as kafka_errors
from twisted.application import service
from twisted.internet import defer
from twisted.logger import Logger

from pcapsvc.core.message import Message
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.sources.kafka.connection import Connection, KafkaSecurity, MissingTopic, Unreachable
from pcapsvc.sources.kafka.reader import Heard, LongGone, NewTopic, Reader
from pcapsvc.sources.kafka.token import UnusableToken
from pcapsvc.sources.polling import Backoff, Outage, OwnThread, Poller

__all__ = ["KafkaSecurity", "KafkaSource"]

#: How long a stop waits for the last commit, and for the group to be left.
STOP_SECONDS = 1.5


class KafkaSource(service.Service):
    """
    Submits each message of a topic.

    An outage is told once, and so is its end. A verdict has no bearing on what
    is read: a node that is busy can't give a message to another.

    @ivar name: what the sink hears as the source.
    """

    name = "kafka"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sink: IRequestSink,
        *,
        servers: Sequence[str],
        topic: str,
        group: str | None = None,
        client_id: str = "pcapsvc",
        security: KafkaSecurity | None = None,
        wall_clock: Callable[[], float] = time.time,
        connect: Callable[[], Connection] | None = None,
        backoff: Backoff | None = None,
        run_in_thread: RunInThread | None = None,
    ) -> None:
        """
        @param reactor: provides time, and takes results from the thread.
        @param servers: where to ask first, each C{HOST:PORT}.
        @param group: whose nodes share the messages; L{None} reads all of them.
        @param security: L{None} is neither encryption nor a login.
        @param wall_clock: the time in seconds since the Unix epoch.
        @param connect: makes a connection that isn't open yet, in place of one to C{servers}.
        @param run_in_thread: in place of a thread of its own.
        """
        self._reactor = reactor
        self._sink = sink
        self._topic = topic
        self._group = group
        self._wall_clock = wall_clock
        self._connect = connect or (
            lambda: Connection(
                servers, topic, group=group, client_id=client_id, security=security or KafkaSecurity()
            )
        )
        self._thread = OwnThread(reactor, "pcapsvc-kafka")
        self._run_in_thread = run_in_thread or self._thread.run
        self._outage = Outage(self._log, f"Kafka {', '.join(servers)}")
        self._backoff = backoff or Backoff()
        self._reader: Reader | None = None
        self._poller: Poller[Heard] | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reader = Reader(self._connect, is_shared=self._group is not None, wall_clock=self._wall_clock)
        self._poller = Poller(
            self._reactor,
            self._reader.read,
            lambda heard: defer.Deferred.fromCoroutine(self._hear(heard)),
            failed=self._tell,
            backoff=self._backoff,
            run_in_thread=self._run_in_thread,
        )
        self._poller.start()

    def stopService(self) -> defer.Deferred[None]:
        """
        Read no more, commit what was submitted, and leave the group.

        @return: fires when that is done, and after L{STOP_SECONDS} or a little more at
            the latest; what hangs then ends by itself.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        poller, self._poller = self._poller, None
        reader, self._reader = self._reader, None
        if poller is None or reader is None:
            return
        await poller.stop()
        reader.stop()
        closing = self._run_in_thread(reader.close)
        self._thread.stop()
        try:
            await closing.addTimeout(STOP_SECONDS, self._reactor)
        except defer.TimeoutError:
            reader.abort()
        except defer.CancelledError:
            reader.abort()
            raise
        except Exception:  # noqa: BLE001 - it is over anyway
            self._log.failure("Kafka: the connection did not close as it should")

    async def _hear(self, heard: Heard) -> None:
        verdicts = [
            self._sink.submit(Message(source=self.name, body=message.body, sent_at=message.sent_at))
            for message in heard.messages
        ]
        # The next read commits these messages.
        await defer.DeferredList(verdicts)
        if heard.gap is not None:
            self._log.error("Kafka, topic {topic!r}: {gap}", topic=self._topic, gap=heard.gap)
        if heard.lost is not None:
            self._outage.report("connection", heard.lost)
        elif heard.is_connected:
            shared = "" if self._group is None else f", sharing it with group {self._group!r}"
            self._outage.ended(f"reading topic {self._topic!r}{shared}")

    def _tell(self, problem: Exception) -> None:
        self._outage.report(*_described(problem, self._topic))


def _described(problem: Exception, topic: str) -> tuple[str, str]:
    """What kind of problem this is, and the problem in words: ours, as others may hold a secret."""
    if isinstance(problem, MissingTopic):
        return "topic", f"there is no topic {topic!r}, and none is created"
    if isinstance(problem, NewTopic):
        return "new", f"topic {topic!r} was created anew"
    if isinstance(problem, (Unreachable, LongGone)):
        return "connection", str(problem)
    if isinstance(problem, UnusableToken):
        return "token", str(problem)
    if isinstance(problem, kafka_errors.SaslAuthenticationFailedError):
        return "login", "the login was refused (the user, the password or the token)"
    if isinstance(problem, kafka_errors.UnsupportedSaslMechanismError):
        return "login", "the login was refused (sasl_mechanism is none that the servers know)"
    if isinstance(problem, kafka_errors.TopicAuthorizationFailedError):
        return "rights", f"there is no right to read topic {topic!r}"
    if isinstance(problem, kafka_errors.GroupAuthorizationFailedError):
        return "rights", "there is no right to use the group"
    if isinstance(problem, kafka_errors.AuthorizationError):
        return "rights", f"a right is missing ({type(problem).__name__})"
    if isinstance(problem, kafka_errors.KafkaTimeoutError):
        return "silence", "the servers can be connected to, and don't answer as they should"
    if isinstance(problem, kafka_errors.KafkaError):
        return type(problem).__name__, f"it failed ({type(problem).__name__})"
    if isinstance(problem, UnusableCertificates):
        return "tls", f"TLS can't be set up: ssl_cafile {problem.rule}"
    if isinstance(problem, ssl.SSLError):
        return "tls", "TLS can't be set up: a file of certificates or keys is wrong"
    if isinstance(problem, OSError):
        return "system", f"{problem.strerror or type(problem).__name__} ({problem.filename or 'network'})"
    return "unforeseen", f"it failed ({type(problem).__name__})"
