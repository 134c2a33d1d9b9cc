"""The limit of open file descriptors."""

from __future__ import annotations

import resource

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.host.descriptors import LOW_LIMIT, DescriptorLimit, Limits, most_captures, most_connections


class DescriptorLimitTests(SynchronousTestCase):
    """L{DescriptorLimit}, with fake limits."""

    def started(self, soft: int, hard: int, *, refusal: Exception | None = None) -> tuple[Limits, str]:
        """The limits after the start, and what was logged."""
        self.limits = (soft, hard)

        def get(number: int) -> Limits:
            self.assertEqual(number, resource.RLIMIT_NOFILE)
            return self.limits

        def put(number: int, limits: Limits) -> None:
            self.assertEqual(number, resource.RLIMIT_NOFILE)
            if refusal is not None:
                raise refusal
            self.limits = limits

        lines: list[str] = []

        def observe(event: dict[str, object]) -> None:
            lines.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(observe)
        try:
            DescriptorLimit(get=get, set=put).startService()
        finally:
            globalLogPublisher.removeObserver(observe)
        return self.limits, "\n".join(lines)

    def test_raised(self) -> None:
        """The soft limit becomes the hard one, whatever that is."""
        for hard in (LOW_LIMIT, 65536, resource.RLIM_INFINITY):
            self.assertEqual(self.started(1024, hard), ((hard, hard), ""))

    def test_few(self) -> None:
        """A hard limit that is low is logged."""
        limits, log = self.started(256, LOW_LIMIT - 1)
        self.assertEqual(limits, (LOW_LIMIT - 1, LOW_LIMIT - 1))
        self.assertIn(f"the limit of open files is {LOW_LIMIT - 1}: ", log)

    def test_refused(self) -> None:
        """If the limit can't be raised, that is logged, and nothing else happens."""
        limits, log = self.started(1024, 65536, refusal=ValueError("not allowed"))
        self.assertEqual(limits, (1024, 65536))
        self.assertEqual(log, "can't raise the limit of open files from 1024 to 65536: not allowed")

    def test_nothing_to_do(self) -> None:
        """A soft limit that is as high as the hard one is left alone."""
        self.assertEqual(self.started(65536, 65536, refusal=ValueError("asked")), ((65536, 65536), ""))


class SharesTests(SynchronousTestCase):
    """L{most_captures} and L{most_connections}."""

    def test_shares(self) -> None:
        """Both leave room for the process and for each other; one capture is always allowed."""
        for hard, captures, connections in (
            (65536, 16347, 128),
            (1024, 219, 128),
            (256, 44, 59),
            (64, 8, 11),
            (3, 1, 4),
            (resource.RLIM_INFINITY, None, 128),
        ):

            def get(number: int, hard: int = hard) -> Limits:
                return hard, hard

            self.assertEqual((most_captures(get), most_connections(get)), (captures, connections), hard)
