"""Failures, pauses and stops of the SQS source, without a network or a thread."""

from __future__ import annotations

import errno

from botocore import exceptions
from twisted.trial import unittest

from pcapsvc.core.result import Accepted
from pcapsvc.net.sqs.client import locate
from pcapsvc.sources.polling import CLEAN_UP_SECONDS, STOP_SECONDS
from pcapsvc.sources.sqs.settler import SETTLE_PAUSES_SECONDS
from pcapsvc.sources.sqs.source import IDLE_SECONDS, MOST_OUTSTANDING
from tests.unit.sqs_case import URL, SQSTestCase, message, refusal, unreachable


class SettleTests(SQSTestCase):
    """Deleting or returning messages can fail."""

    def test_in_part(self) -> None:
        """Only what failed is tried again, after a pause."""
        self.client.settling = [[{"Id": "1", "SenderFault": False, "Code": "InternalError"}]]
        self.poll(message("a"), message("b"), message("c"))
        self.assertEqual([], self.thread.work)
        self.clock.advance(SETTLE_PAUSES_SECONDS[0])
        self.thread.step()
        self.assertEqual(
            [["receipt of a", "receipt of b", "receipt of c"], ["receipt of b"]], self.client.deleted
        )
        self.assertEqual(1, len(self.thread.work))

    def test_slow_one_in_vain(self) -> None:
        """So it is after a slow verdict. The source is still connected: it receives."""
        verdicts = self.sink.hold()
        self.client.settling = [refusal("AccessDenied") for _ in range(3)]
        self.client.messages.append([message("a")])
        self.thread.step()
        self.logged()
        verdicts[0].callback(Accepted(captures=()))
        self.thread.settle()
        for seconds in SETTLE_PAUSES_SECONDS:
            self.clock.advance(seconds)
            self.thread.settle()
        self.assertEqual([f"warn: SQS {URL}: the server answered AccessDenied: no; retrying"], self.logged())
        self.poll()
        self.assertEqual([], self.logged())
        self.assertTrue(self.source.state().connected)
        self.poll(message("a"))
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged()[1:])

    def test_unmentioned(self) -> None:
        """What the answer does not report as deleted is tried again."""
        self.client.settling = [[{"Id": "1"}]]
        self.poll(message("a"), message("b"))
        self.clock.advance(SETTLE_PAUSES_SECONDS[0])
        self.thread.step()
        self.assertEqual([["receipt of a", "receipt of b"], ["receipt of b"]], self.client.deleted)

    def test_our_fault(self) -> None:
        """A receipt that is no longer valid is not tried again."""
        self.client.settling = [[{"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"}]]
        self.poll(message("a"))
        self.poll()
        self.assertEqual(1, len(self.client.deleted))
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged())

    def test_in_vain(self) -> None:
        """The last failed attempt is logged, once, and the polls go on after a pause."""
        for times in (1, 2):
            self.client.settling = [refusal("AccessDenied") for _ in range(3)]
            self.poll(message(f"message {times}"))
            for seconds in SETTLE_PAUSES_SECONDS:
                self.clock.advance(seconds)
                self.thread.step()
            # It still receives.
            self.assertTrue(self.source.state().connected)
            self.clock.advance(30)
            self.poll()
        self.assertEqual(6, len(self.client.deleted))
        self.assertEqual([f"warn: SQS {URL}: the server answered AccessDenied: no; retrying"], self.logged())
        self.poll(message("message 3"))
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged())


class OutageTests(SQSTestCase):
    """The service can't be reached, or refuses."""

    def test_reason(self) -> None:
        """It is logged why there was no connection."""
        self.poll()
        self.logged()
        self.poll_fails(unreachable(OSError(errno.EMFILE, "Too many open files")))
        words = f'SQS {URL}: Could not connect to the endpoint URL: "{URL}"'
        self.assertEqual([f"warn: {words}: Too many open files; retrying"], self.logged())

    def test_told_once(self) -> None:
        """An outage is logged once, and so is its end."""
        self.poll()
        self.logged()
        self.poll_fails(*(unreachable() for _ in range(20)))
        self.assertEqual(
            [f'warn: SQS {URL}: Could not connect to the endpoint URL: "{URL}"; retrying'],
            self.logged(),
        )
        self.poll(message("a"))
        self.poll()
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged())
        self.assertEqual(1, self.clients)

    def test_pauses(self) -> None:
        """The pauses between failed polls grow up to a limit."""
        self.chance = 1.0
        for seconds in (0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
            self.client.messages.append(unreachable())
            self.thread.step()
            self.clock.advance(seconds - 0.01)
            self.assertEqual([], self.thread.work)
            self.clock.advance(0.02)
            self.assertEqual(1, len(self.thread.work))

    def test_stale_connection(self) -> None:
        """A kept connection that has died is no outage."""
        self.poll()
        self.client.messages = [exceptions.ConnectionClosedError(endpoint_url=URL), []]
        self.clock.advance(20)
        self.thread.step()
        self.poll(message("a"))
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged())
        self.assertEqual(1, len(self.sink.submitted))

    def test_cut_again_and_again(self) -> None:
        """A server that closes every connection is one."""
        self.poll_fails(*(exceptions.ConnectionClosedError(endpoint_url=URL) for _ in range(3)))
        self.assertEqual(1, len(self.logged()))

    def test_no_secret(self) -> None:
        """Whatever the service says, the access key is never logged, nor are line breaks."""
        self.poll_fails(refusal("SignatureDoesNotMatch", "s3cret/key or s3cret%2Fkey\nis wrong"))
        (line,) = self.logged()
        self.assertEqual(
            f"warn: SQS {URL}: the server answered SignatureDoesNotMatch: "
            "[access key] or [access key] is wrong; retrying",
            line,
        )

    def test_no_credentials(self) -> None:
        """A client that found no credentials is replaced, so that later ones are found."""
        self.poll_fails(exceptions.NoCredentialsError(), exceptions.NoCredentialsError())
        self.poll()
        self.assertEqual(3, self.clients)
        warning, _ = self.logged()
        self.assertIn("Unable to locate credentials", warning)

    def test_outdated_credentials(self) -> None:
        """So is one whose credentials the service calls outdated: a profile may have new ones by now."""
        codes = ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "SignatureDoesNotMatch")
        self.poll_fails(*(refusal(code) for code in codes))
        self.poll()
        self.assertEqual(1 + len(codes), self.clients)

    def test_access_denied(self) -> None:
        """A client whose credentials are valid, but not sufficient, is kept."""
        self.poll_fails(refusal("AccessDenied"))
        self.poll()
        self.assertEqual(1, self.clients)

    def test_unforeseen(self) -> None:
        """An unexpected error doesn't end the polls; its message, maybe with a secret, is not logged."""
        self.poll_fails(RuntimeError("hunter2"), MemoryError())
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))
        warning, _ = self.logged()
        self.assertIn("unexpected error (RuntimeError)", warning)
        self.assertNotIn("hunter2", warning)


class IdleTests(SQSTestCase):
    """Short polls pause."""

    wait_seconds = 0

    def test_rests(self) -> None:
        """There is a second between polls of an empty queue, and no pause while messages come."""
        self.poll()
        for _ in range(3):
            self.poll()
            self.clock.advance(IDLE_SECONDS - 0.01)
            self.assertEqual([], self.thread.work)
            self.clock.advance(0.02)
            self.assertEqual(1, len(self.thread.work))
        for name in "abc":
            self.poll(message(name))
        self.assertEqual(3, len(self.sink.submitted))

    def test_stop(self) -> None:
        """A stop ends the pause."""
        self.poll()
        self.poll()
        self.successResultOf(self.source.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())


class StopTests(SQSTestCase):
    """A stop doesn't wait for a poll, and loses no message."""

    def test_before_the_start(self) -> None:
        """A second stop, or one before the start, does nothing."""
        self.successResultOf(self.source.stopService())
        self.successResultOf(self.source.stopService())

    def test_during_a_poll(self) -> None:
        """It is immediate; what the poll receives then is returned at once, and the client is closed."""
        self.client.messages = [[message("a"), message("b")]]
        self.client.meanwhile = lambda: self.successResultOf(self.source.stopService())
        self.thread.step()
        self.assertEqual([{"receipt of a": 0, "receipt of b": 0}], self.client.hidden)
        self.thread.step()
        self.assertEqual(([], True, []), (self.sink.submitted, self.client.closed, self.thread.work))

    def test_after_a_poll(self) -> None:
        """Received messages that were not processed yet are returned, too."""
        self.client.messages = [[message("a")]]
        result, function, args = self.thread.work.pop(0)
        brought = function(*args)
        self.successResultOf(self.source.stopService())
        result.callback(brought)
        self.thread.step()
        self.assertEqual([{"receipt of a": 0}], self.client.hidden)
        self.assertEqual(([], True), (self.sink.submitted, self.client.closed))

    def test_while_settling(self) -> None:
        """Submitted messages are deleted first."""
        self.client.messages = [[message("a")]]
        self.thread.step()
        stopping = self.source.stopService()
        self.assertNoResult(stopping)
        self.thread.step()
        self.successResultOf(stopping)
        self.assertEqual([["receipt of a"]], self.client.deleted)
        self.thread.step()
        self.assertEqual(([], True), (self.thread.work, self.client.closed))

    def test_while_settling_in_vain(self) -> None:
        """This is waited for, but not for long."""
        self.client.messages = [[message("a")]]
        self.thread.step()
        stopping = self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopping)

    def test_while_verdicts_are_awaited(self) -> None:
        """Verdicts that are awaited have a while; then they are cancelled, and all messages are settled."""
        verdicts = self.sink.hold()
        self.client.messages = [[message("a"), message("b")]]
        self.thread.step()
        stopping = self.source.stopService()
        verdicts[0].callback(Accepted(captures=()))
        self.thread.settle()
        self.clock.advance(STOP_SECONDS - 0.1)
        self.assertFalse(verdicts[1].called)
        self.clock.advance(0.1)
        self.assertNoResult(stopping)
        self.thread.settle()
        self.successResultOf(stopping)
        self.assertEqual([["receipt of a"]], self.client.deleted)
        self.assertEqual(["receipt of b"], list(self.client.hidden[0]))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_while_verdicts_are_settled_in_vain(self) -> None:
        """If those can't be settled, the stop doesn't wait for long."""
        self.sink.hold()
        self.client.messages = [[message("a")]]
        self.thread.step()
        stopping = self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        self.assertNoResult(stopping)
        self.clock.advance(CLEAN_UP_SECONDS)
        self.successResultOf(stopping)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_while_there_is_no_room(self) -> None:
        """A stop ends the wait for room."""
        self.sink.hold()
        self.client.messages = [[message(str(number)) for number in range(MOST_OUTSTANDING)]]
        self.thread.step()
        self.assertEqual([], self.thread.work)
        stopping = self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        while self.thread.settling():
            self.thread.settle()
        self.successResultOf(stopping)
        self.assertEqual(MOST_OUTSTANDING, sum(map(len, self.client.hidden)))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_during_a_pause(self) -> None:
        """A stop ends the pause after a failure."""
        self.client.messages = [unreachable()]
        self.thread.step()
        self.successResultOf(self.source.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_again(self) -> None:
        """It can be started again, with another client."""
        self.source.stopService()
        self.thread.step()
        self.thread.step()
        self.source.startService()
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))


class LocateTests(unittest.SynchronousTestCase):
    """The region and the endpoint follow from a queue's URL."""

    def test_region(self) -> None:
        """Amazon's URLs contain the region, and public ones need no endpoint."""
        for host, region in (
            ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
            ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("sqs.eu-west-1.api.aws", "eu-west-1"),
            ("eu-west-1.queue.amazonaws.com", "eu-west-1"),
            ("queue.amazonaws.com", "us-east-1"),
        ):
            self.assertEqual((region, None), locate(f"https://{host}/1/q", None, None))

    def test_private(self) -> None:
        """A private endpoint is used unchanged."""
        host = "vpce-0a-1b.sqs.eu-west-1.vpce.amazonaws.com"
        self.assertEqual(("eu-west-1", f"https://{host}"), locate(f"https://{host}/1/q", None, None))

    def test_others(self) -> None:
        """The endpoint of a compatible service is the URL's server, and there is no region."""
        for url in ("http://127.0.0.1:9324/0/q", "http://127.0.0.1:9324/sqs.eu-west-1.amazonaws.com/q"):
            self.assertEqual((None, "http://127.0.0.1:9324"), locate(url, None, None))
        self.assertIsNone(locate("https://sqs.eu-west-1.amazonaws.com.example/0/q", None, None)[0])

    def test_configured(self) -> None:
        """Configured values have precedence."""
        self.assertEqual(("r", "http://e"), locate(URL, "r", "http://e"))
        self.assertEqual(("r", "http://e"), locate("http://host/q", "r", "http://e"))
