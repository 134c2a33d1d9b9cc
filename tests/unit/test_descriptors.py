"""How many descriptors the process may have."""

from __future__ import annotations

import resource

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.host.descriptors import FEW, DescriptorLimit, Limits, most_captures


class DescriptorLimitTests(SynchronousTestCase):
    """L{DescriptorLimit}, with a limit in place of the process's."""

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
        for hard in (FEW, 65536, resource.RLIM_INFINITY):
            self.assertEqual(self.started(1024, hard), ((hard, hard), ""))

    def test_few(self) -> None:
        """A hard limit that is low itself is told."""
        limits, log = self.started(256, FEW - 1)
        self.assertEqual(limits, (FEW - 1, FEW - 1))
        self.assertIn(f"no more than {FEW - 1} descriptors are allowed", log)

    def test_refused(self) -> None:
        """Where the limit can't be raised, it is told, and that is all."""
        limits, log = self.started(1024, 65536, refusal=ValueError("not allowed"))
        self.assertEqual(limits, (1024, 65536))
        self.assertEqual(log, "the limit of 1024 descriptors can't be raised to 65536: not allowed")

    def test_nothing_to_do(self) -> None:
        """A limit that is the hard one is left alone."""
        self.assertEqual(self.started(65536, 65536, refusal=ValueError("asked")), ((65536, 65536), ""))


class MostCapturesTests(SynchronousTestCase):
    """L{most_captures}."""

    def test_a_quarter(self) -> None:
        """A capture may have four descriptors; one capture is allowed in any case."""
        for hard, most in ((65536, 16384), (256, 64), (3, 1), (resource.RLIM_INFINITY, None)):
            self.assertEqual(most_captures(lambda number, hard=hard: (hard, hard)), most)
