"""Rounds: captures that wait in the spool are delivered eventually."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from pcapsvc.core.errors import DestinationError, SpoolError
from pcapsvc.core.event import CaptureDelivered, DeliveryPostponed
from pcapsvc.core.labels import Labels
from pcapsvc.core.retry import LONGEST_ASKED_SECONDS
from pcapsvc.core.spool_entry import make_entry
from pcapsvc.delivery.entry import State
from pcapsvc.delivery.folder import Found, SpoolFolder
from pcapsvc.destinations.s3.options import check_options
from pcapsvc.testing import run_now
from tests.core.test_spool_entry import MANIFEST_1
from tests.unit.contents import make_artifact
from tests.unit.spool_case import DATA, DAY, WALL, SpoolCase


class RoundsTests(SpoolCase):
    """From the spool to the destination."""

    def answers(self, *answers: Callable[[], Deferred[Any]]) -> None:
        """What the destination answers to its attempts, the last one to all that follow."""
        left = list(answers)
        self.one.answer = lambda: (left.pop(0) if len(left) > 1 else left[0])()

    def broken(self) -> Deferred[Any]:
        """An attempt that fails."""
        return fail(DestinationError("503", retryable=True))

    def test_after_a_restart(self) -> None:
        """What is in the spool is delivered after a start, the oldest first, once, and reported."""
        for name in ("c.pcap", "a.pcap", "b.pcap"):
            self.put(name)
        self.restart()
        self.rounds.startService()
        self.assertEqual(self.stored(), ["c.pcap", "a.pcap", "b.pcap"])
        self.assertEqual(len(self.events(CaptureDelivered)), 3)
        self.assertEqual((self.names(), self.spool.entries, self.spool.size), ([], 0, 0))
        # The previous process may have delivered it.
        self.assertTrue(all(artifact.may_be_there for artifact in self.one.artifacts))
        self.restart()
        self.rounds.startService()
        self.assertEqual(len(self.one.artifacts), 3)

    def test_stopped_while_listed(self) -> None:
        """
        If the service stops while the directory is listed, that ends at once. A capture that is still to be
        spooled is, and the next start finds everything.
        """
        for name in ("a.pcap", "b.pcap", "c.pcap"):
            self.put(name)
        for entry in self.path.glob("*-*"):
            (entry / "manifest.json").write_bytes(b"damaged")
        self.stop()
        self.start()

        stopping: list[Deferred[None]] = []
        really_open = SpoolFolder.open

        def open_and_stop(folder: SpoolFolder, is_ended: Callable[[], bool]) -> Any:
            def stop_after_the_first() -> bool:
                if not stopping and (self.path / "broken").exists():
                    stopping.append(self.rounds.stopService())
                return is_ended()

            return really_open(folder, stop_after_the_first)

        self.patch(SpoolFolder, "open", open_and_stop)
        self.rounds.startService()
        self.successResultOf(stopping[0])
        self.assertEqual(len(list(self.path.glob("broken/*"))), 1)
        self.put("d.pcap")
        self.restart()
        self.assertEqual((self.spool.entries, len(list(self.path.glob("broken/*")))), (1, 3))

    def test_many(self) -> None:
        """Many entries are looked at in several turns of the reactor."""
        artifact = make_artifact(self.content, destination="one")
        entries = tuple(
            make_entry(artifact, "one", size=len(DATA), sha256="0" * 64, created=WALL + number, problem="503")
            for number in range(2500)
        )
        found = Found(entries=entries, quarantined=(), damaged=(), unreadable=(), leftovers=())
        self.patch(SpoolFolder, "open", lambda folder, is_ended: found)
        self.patch(SpoolFolder, "is_open", lambda folder: self.spool.entries > 0)
        for _ in range(2):
            tidying = self.spool.tidy()
            self.assertNoResult(tidying)
            self.clock.advance(0)
            self.successResultOf(tidying)
        self.assertEqual(self.spool.entries, 2500)

    def test_labels_after_a_restart(self) -> None:
        """Events after a restart have the labels of the request."""
        labels = Labels(via="kafka", requestid="r-1", alertid=17, customer="Zoë", tags="t", interface="eth0")
        artifact = replace(make_artifact(self.content), labels=labels)
        self.successResultOf(self.write(artifact))
        self.answers(self.broken, lambda: succeed(None))
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 3)
        self.assertEqual(
            [(type(event.data), event.labels, event.subject) for event in self.reporter.events],
            [(DeliveryPostponed, labels, "abc"), (CaptureDelivered, labels, "abc")],
        )

    def test_manifest_of_version_1(self) -> None:
        """What an older version spooled is delivered, with its options; its labels are not known."""
        entry = self.path / "1795316400104-f3a9c2d41b07-s3"
        self.one.name = "s3"
        self.wall = 1_795_316_500.0
        self.stop()
        self.start()
        entry.mkdir(0o700)
        (entry / "manifest.json").write_bytes(MANIFEST_1)
        (entry / "capture.pcap").write_bytes(DATA)
        self.rounds.startService()
        [artifact] = self.one.artifacts
        self.assertEqual(artifact.name, "web1-eth0-1795316400-f3a9c2d41b07.pcap")
        self.assertEqual(self.one.files[artifact.name], DATA)
        self.assertEqual(
            artifact.options, {"s3": {"bucket": "captures-eu", "folder": "web/1", "encryption": False}}
        )
        [event] = self.reporter.events
        self.assertEqual((event.labels, event.subject), (Labels(via=None), "f3a9c2d41b07"))
        self.assertEqual(self.names(), [])

    def test_options_after_a_restart(self) -> None:
        """The options of any destination are in its manifest."""
        self.put(recipients=["a@example.org"], priority=2)
        self.restart()
        self.rounds.startService()
        [artifact] = self.one.artifacts
        self.assertEqual(artifact.options, {"one": {"recipients": ["a@example.org"], "priority": 2}})

    def test_options_refused(self) -> None:
        """
        What a manifest says of its destination is checked before it is delivered, as by a request: it may
        have been tampered with, or not be allowed any more. It waits for an operator.
        """
        self.put(bucket="../../evil")
        self.one.problems = check_options
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 31)
        self.assertEqual((self.one.artifacts, self.spool.entries), ([], 1))
        [first, second] = self.events(DeliveryPostponed)
        self.assertIn('the request\'s bucket = "../../evil": must be the name of a bucket', first.problem)
        self.assertEqual((first.problem, second.attempts), (second.problem, 2))
        self.one.problems = lambda options: ()
        self.clock.pump([60] * 31)
        self.assertEqual(len(self.one.artifacts), 1)

    def test_periodically(self) -> None:
        """What is spooled later is delivered, too, though not immediately."""
        self.rounds.startService()
        self.put()
        self.clock.advance(58)
        self.assertEqual(self.one.artifacts, [])
        self.clock.pump([1] * 62)
        self.assertEqual(len(self.one.files), 1)
        self.clock.pump([60] * 10)
        self.assertEqual(len(self.one.artifacts), 1)

    def test_back_off(self) -> None:
        """Each failure doubles the delay, up to half an hour; each is reported."""
        self.put()
        self.answers(self.broken)
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 200)
        tries = [event.next_try - WALL - 1 for event in self.events(DeliveryPostponed)]
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        self.assertEqual(pauses[:5], [120, 240, 480, 960, 1800])
        self.assertTrue(all(event.spooled for event in self.events(DeliveryPostponed)))
        self.assertEqual(len(tries), 11)

    def test_asked(self) -> None:
        """If a destination asks us to wait, we do."""
        self.put()
        self.answers(lambda: fail(DestinationError("429", retryable=True, retry_after_seconds=1000)))
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 16)
        self.assertEqual(len(self.one.artifacts), 1)
        self.clock.pump([60] * 2)
        self.assertEqual(len(self.one.artifacts), 2)

    def test_asked_for_ages(self) -> None:
        """If a destination asks us to wait for ages, we wait an hour, after attempts from memory as well."""
        self.answers(
            *[lambda: fail(DestinationError("429", retryable=True, retry_after_seconds=1e12))] * 2,
            lambda: succeed(None),
        )
        self.successResultOf(self.outbox.deliver(make_artifact(self.content), lambda: None))
        self.rounds.startService()
        for attempts in (2, 3):
            self.clock.pump([60] * (int(LONGEST_ASKED_SECONDS) // 60 - 2))
            self.assertEqual(len(self.one.artifacts), attempts - 1)
            self.clock.pump([60] * 2)
            self.assertEqual(len(self.one.artifacts), attempts)
        self.assertEqual(self.stored(), ["abc.pcap"])

    def test_dropped_meanwhile(self) -> None:
        """What is being dropped is not attempted any more: it could be delivered and reported as lost."""
        self.put()
        self.clock.advance(DAY + 1)
        hanging = self.hang("remove")
        tidying = self.spool.tidy()
        self.assertEqual(self.spool.due("one"), [])
        [removal] = hanging
        removal.callback(None)
        self.successResultOf(tidying)
        self.run_in_thread = run_now
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])

    def test_vanished_meanwhile(self) -> None:
        """What vanished while it was attempted, and was not delivered, is reported as lost."""
        self.put()
        attempt: Deferred[Any] = Deferred()
        self.answers(lambda: attempt)
        self.restart()
        self.rounds.startService()
        self.replace_directory()
        self.assertEqual(self.lost(), [])
        attempt.errback(DestinationError("503", retryable=True))
        self.assertEqual(self.lost(), [("a", "no longer in the spool")])
        self.assertEqual(self.events(DeliveryPostponed), [])

    def test_vanished_and_delivered(self) -> None:
        """What vanished while it was attempted, and was delivered, is not."""
        self.put()
        self.restart()
        [entry] = self.take()
        self.replace_directory()
        self.successResultOf(self.delivered(entry))
        self.assertIs(entry.state, State.DELIVERED)
        self.assertEqual(self.lost(), [])

    def replace_directory(self) -> None:
        """Replace the spool's directory by another one, and have the spool notice."""
        self.path.rename(self.path.with_name(f"{self.path.name}-away"))
        self.path.mkdir(0o700)
        self.successResultOf(self.spool.tidy())

    def test_away_and_back(self) -> None:
        """A capture that vanishes and reappears while it is attempted is still the same, and still taken."""
        self.put()
        hanging: list[Deferred[Any]] = [Deferred()]
        self.answers(lambda: hanging[0], lambda: succeed(None))
        self.restart()
        self.rounds.startService()
        away = self.path.with_name(f"{self.path.name}-away")
        self.path.rename(away)
        self.path.mkdir(0o700)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(self.spool.entries, 0)
        shutil.rmtree(self.path)
        away.rename(self.path)
        self.successResultOf(self.spool.tidy())
        self.assertEqual((self.spool.entries, self.spool.due("one")), (1, []))
        hanging[0].callback(None)
        self.assertEqual((self.spool.entries, self.names(), self.lost()), (0, [], []))
        self.clock.advance(61)
        self.assertEqual(len(self.one.artifacts), 1)

    def test_not_retryable(self) -> None:
        """What only an operator can fix is attempted rarely, and not given up."""
        self.put()
        self.answers(lambda: fail(DestinationError("403", retryable=False)), lambda: succeed(None))
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 29)
        self.assertEqual(len(self.one.artifacts), 1)
        self.clock.pump([60] * 2)
        self.assertEqual(len(self.one.files), 1)

    def test_one_fails(self) -> None:
        """A capture that is refused delays no other."""
        for name in ("a.pcap", "b.pcap", "c.pcap"):
            self.put(name)
        self.answers(self.broken, lambda: succeed(None))
        self.restart()
        self.rounds.startService()
        self.assertEqual(self.stored(), ["b.pcap", "c.pcap"])
        self.clock.pump([60] * 3)
        self.assertEqual(self.stored(), ["b.pcap", "c.pcap", "a.pcap"])

    def test_one_at_a_time(self) -> None:
        """There is one attempt at a time, so that captures from memory have slots."""
        self.put("a.pcap")
        self.put("b.pcap")
        self.answers(Deferred)
        self.restart()
        self.rounds.startService()
        self.clock.pump([60] * 4)
        self.assertEqual([artifact.capture_id for artifact in self.one.artifacts], ["a"])
        self.stop_hurried()

    def test_one_at_a_time_on_each_route(self) -> None:
        """What hangs on one route to a destination delays nothing on another."""
        for name in ("a.pcap", "b.pcap"):
            self.put(name, endpoint="https://slow.example.com")
        for name in ("c.pcap", "d.pcap", "e.pcap"):
            self.put(name)
        self.answers(
            lambda: (
                Deferred() if "endpoint" in self.one.artifacts[-1].options.get("one", {}) else succeed(None)
            )
        )
        self.restart()
        self.rounds.startService()
        self.put("f.pcap")
        self.clock.pump([60] * 2)
        self.assertEqual({artifact.capture_id for artifact in self.one.artifacts}, {*"acdef"})
        self.assertEqual(self.stored(), ["c.pcap", "d.pcap", "e.pcap", "f.pcap"])
        self.stop_hurried()

    def test_another_destination(self) -> None:
        """What is for a destination that isn't configured any more stays, which is logged."""
        self.put(destination="old")
        self.restart()
        self.rounds.startService()
        self.assertEqual((self.one.artifacts, self.spool.entries), ([], 1))
        self.assertIn("captures for old, which is not configured", " ".join(line for _, line in self.lines))

    def test_damaged(self) -> None:
        """What is not what was written is not delivered, and the next one is."""
        self.put("a.pcap")
        self.put("b.pcap")
        (self.entry() / "capture.pcap").write_bytes(b"xxxx packets")
        self.restart()
        self.rounds.startService()
        self.assertEqual(self.stored(), ["b.pcap"])
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])
        self.assertEqual(self.events(DeliveryPostponed), [])

    def test_unreadable(self) -> None:
        """What can't be read now is tried later."""
        self.put()
        self.restart()
        opened = self.run_in_thread

        def failing(function: Any, *args: Any) -> Deferred[Any]:
            if function.__name__ == "read":
                return fail(SpoolError("Input/output error"))
            return opened(function, *args)

        self.run_in_thread = failing
        self.rounds.startService()
        self.assertEqual(
            [event.problem for event in self.events(DeliveryPostponed)], ["the spool: Input/output error"]
        )
        self.run_in_thread = opened
        self.clock.pump([60] * 2)
        self.assertEqual(len(self.one.files), 1)

    def test_not_removed(self) -> None:
        """What is delivered and can't be removed is logged, not delivered again, and removed later."""
        self.put()
        self.restart()
        rename = os.rename

        def failing(old: str, new: str) -> None:
            if ".gone-" in new:
                raise OSError(30, "Read-only file system")
            rename(old, new)

        with_failures = self.patch(os, "rename", failing)
        self.rounds.startService()
        self.clock.pump([60] * 40)
        self.assertEqual(len(self.one.artifacts), 1)
        self.assertIn("may be delivered again after a restart", self.errors()[0])
        self.assertEqual(self.spool.entries, 0)
        with_failures.restore()
        self.clock.pump([60])
        self.assertEqual(self.names(), [])

    def test_stop(self) -> None:
        """A stop begins no more, and waits for what goes on."""
        self.put("a.pcap")
        self.put("b.pcap")
        hanging: Deferred[Any] = Deferred()
        self.answers(lambda: hanging)
        self.restart()
        self.rounds.startService()
        self.rounds.hurry()
        stopping = self.rounds.stopService()
        self.assertNoResult(stopping)
        hanging.callback(None)
        self.successResultOf(stopping)
        self.assertEqual((self.stored(), self.spool.entries), (["a.pcap"], 1))

    def stop_hurried(self) -> None:
        stopping = self.rounds.stopService()
        self.rounds.hurry()
        self.successResultOf(stopping)

    def test_stop_in_a_hurry(self) -> None:
        """In a hurry, attempts are cancelled, and their captures stay; so it is if the stop is cancelled."""
        self.put()
        self.answers(Deferred)
        self.restart()
        self.rounds.startService()
        self.stop_hurried()
        self.assertEqual(self.spool.entries, 1)
        self.restart()
        self.rounds.startService()
        stopping = self.rounds.stopService()
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual((self.spool.entries, len(self.one.artifacts)), (1, 2))

    def test_internal_error(self) -> None:
        """An internal error in one round is logged, and the next round comes."""
        self.put()
        self.answers(self.broken, lambda: succeed(None))
        self.restart()
        self.chance = lambda: 1 / 0  # type: ignore[method-assign]
        self.rounds.startService()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.chance = lambda: 1.0  # type: ignore[method-assign]
        self.clock.pump([60])
        self.assertEqual(len(self.one.files), 1)

    def test_cancelled_round(self) -> None:
        """A round that is cancelled, for example by threads that are left behind, is not an error."""
        self.rounds.startService()
        hanging: list[Deferred[Any]] = []
        self.run_in_thread = lambda *args: hanging.append(Deferred()) or hanging[-1]  # type: ignore[func-returns-value]
        self.clock.pump([60])
        stopping = self.rounds.stopService()
        stopping.cancel()
        self.successResultOf(stopping)
        [tidying] = hanging
        tidying.cancel()
        self.assertEqual(self.errors(), [])
        self.run_in_thread = run_now

    def test_slow_disk(self) -> None:
        """A start that waits for the disk can be stopped."""
        self.stop()
        self.start()
        hanging: list[Deferred[Any]] = []

        def later(function: Any, *args: Any) -> Deferred[Any]:
            hanging.append(Deferred())
            return hanging[-1].addCallback(lambda _: maybeDeferred(function, *args))

        self.run_in_thread = later
        self.rounds.startService()
        stopping = self.rounds.stopService()
        self.assertNoResult(stopping)
        stopping.cancel()
        self.successResultOf(stopping)
        self.run_in_thread = run_now
        hanging[0].callback(None)
