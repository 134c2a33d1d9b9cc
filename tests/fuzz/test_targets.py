"""The targets of the fuzzer, run without it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import TARGETS


class TargetTests(SynchronousTestCase):
    """The targets and their seeds."""

    def test_seeds(self) -> None:
        """Every seed is accepted. From a rejected one, the fuzzer would not get far."""
        for name, target in TARGETS.items():
            for seed in target.seeds:
                self.assertTrue(target.run(seed), f"{name}: {seed!r}")
                self.assertLessEqual(len(seed), target.max_bytes)

    def test_refused(self) -> None:
        """An input that is neither a message nor a configuration is rejected, which is not a finding."""
        for target in TARGETS.values():
            for wrong in (b"\xff", b"[", b'{"\n', b"\x00" * 3):
                self.assertFalse(target.run(wrong), wrong)

    def test_names(self) -> None:
        """The command line knows every target."""
        self.assertEqual(NAMES, tuple(TARGETS))
