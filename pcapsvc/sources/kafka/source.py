"""
Requests from a Kafka topic.

A topic keeps its messages, so the source has to keep its position. It starts at the newest offset, and misses
nothing from there on, whatever happens to brokers and connections. Without a consumer group, the position is
in memory only. The nodes of a group share the messages, and commit those whose verdicts have fired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kafka import errors as kafka_errors
from twisted.application import service
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.message import Message
from pcapsvc.core.result import Busy, Verdict
from pcapsvc.core.source_state import SourceState
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.kafka.problems import described
from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.net.outages import Backoff, Outage
from pcapsvc.sources.kafka.connection import Connection
from pcapsvc.sources.kafka.reader import Batch, LongGone, NewTopic, Reader
from pcapsvc.sources.kafka.reader import Message as Received
from pcapsvc.sources.polling import OwnThread, Poller, drain

#: How long a stop waits for the last commit, and for leaving the consumer group.
STOP_SECONDS = 1.5


@implementer(IRequestSource)
class KafkaSource(service.Service):
    """
    Submits each message of a topic.

    An outage is logged once, and so is its end. A verdict has no effect on what is read: a busy node can't
    pass a message on to another node. Reading goes on while verdicts are awaited.

    @ivar name: the name of the source in requests that it submits.
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
        @param reactor: provides time, and receives results from the thread.
        @param servers: the servers to connect to first, each C{HOST:PORT}.
        @param group: the consumer group whose nodes share the messages; L{None} reads all messages.
        @param security: L{None} is no encryption and no authentication.
        @param wall_clock: returns the time in seconds since the Unix epoch.
        @param connect: makes a connection that isn't open yet, in place of one to C{servers}.
        @param run_in_thread: replaces the source's own thread.
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
        self._connectivity = Connectivity(wall_clock)
        self._backoff = backoff or Backoff()
        self._reader: Reader | None = None
        self._poller: Poller[Batch] | None = None
        # In a group: the verdicts that have not fired.
        self._awaited: set[defer.Deferred[Any]] = set()

    def startService(self) -> None:
        """Start connecting."""
        super().startService()  # type: ignore[no-untyped-call]
        self._connectivity.started()
        self._reader = Reader(self._connect, is_shared=self._group is not None, wall_clock=self._wall_clock)
        self._poller = Poller(
            self._reactor,
            self._reader.read,
            self._process,
            failed=self._report,
            backoff=self._backoff,
            run_in_thread=self._run_in_thread,
        )
        self._poller.start()

    def stopService(self) -> defer.Deferred[None]:
        """
        Stop reading, commit what is decided, and leave the consumer group. Verdicts that are awaited get
        L{pcapsvc.sources.polling.STOP_SECONDS}. A request that is given up then, or answered as busy because
        the daemon is stopping, isn't committed: another node of the group gets it.

        @return: fires when that is done, or little more than L{STOP_SECONDS} after the verdicts. A connection
            that hangs then is closed in the background.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._connectivity.stopped()
        return defer.Deferred.fromCoroutine(self._stop())

    def state(self) -> SourceState:
        """Connected while it has partitions, and can read all of them. See L{IRequestSource.state}."""
        return self._connectivity.state

    async def _stop(self) -> None:
        poller, self._poller = self._poller, None
        reader, self._reader = self._reader, None
        if poller is None or reader is None:
            return
        await poller.stop()
        await drain(self._reactor, self._awaited, self._give_up)
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
        except Exception:  # noqa: BLE001 - the source is stopping anyway
            self._log.failure("Kafka: the connection did not close properly")

    def _give_up(self) -> None:
        for verdict in list(self._awaited):
            verdict.cancel()

    def _process(self, batch: Batch) -> None:
        reader = self._reader
        if reader is None:
            return
        for message in batch.messages:
            verdict = self._sink.submit(Message(source=self.name, body=message.body, sent_at=message.sent_at))
            verdict.addErrback(self._failed)
            if self._group is not None:
                self._await(reader, message, verdict)
        if batch.gap is not None:
            self._log.error("Kafka, topic {topic!r}: {gap}", topic=self._topic, gap=one_line(batch.gap))
        if batch.lost is not None:
            self._connectivity.failed(batch.lost)
            self._outage.report("connection", batch.lost)
        elif batch.is_connected:
            if batch.is_assigned:
                self._connectivity.connected()
            else:
                self._connectivity.failed(f"group {self._group!r} has assigned no partition to this node")
            shared = "" if self._group is None else f", sharing it with group {self._group!r}"
            self._outage.ended(f"reading topic {self._topic!r}{shared}")

    def _await(self, reader: Reader, message: Received, verdict: defer.Deferred[Verdict]) -> None:
        """Commit a message only after its verdict has fired."""
        fired: list[Verdict] = []

        def decided(_: object) -> None:
            self._awaited.discard(verdict)
            # A node that is stopping answers requests as busy that another one can meet.
            if self.running or not isinstance(fired[0], Busy):
                reader.undecided.remove(message.partition, message.offset)

        verdict.addCallback(fired.append)
        if not fired:
            reader.undecided.add(message.partition, message.offset)
            self._awaited.add(verdict)
            verdict.addCallback(decided)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("Kafka, topic {topic!r}: a message was lost", failure, topic=self._topic)

    def _report(self, problem: Exception) -> None:
        kind, words = _described(problem, self._topic)
        self._connectivity.failed(words)
        self._outage.report(kind, words)


def _described(problem: Exception, topic: str) -> tuple[str, str]:
    """The kind of a problem, and the problem in our own words."""
    if isinstance(problem, NewTopic):
        return "new", f"topic {topic!r} was deleted and created again"
    if isinstance(problem, LongGone):
        return "connection", str(problem)
    if isinstance(problem, kafka_errors.GroupAuthorizationFailedError):
        return "rights", "no permission to use the consumer group"
    return described(problem, topic, to="read")
