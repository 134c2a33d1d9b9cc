"""Captures that a store keeps: their lines in a list, and their age."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.kept_file import KeptFile, SteadyClock, read_line
from tests.chance import seeded
from tests.examples import given, settings, strategies

_NAME = "web1-eth0-1700000000-6991f016514d.pcap"
_FILE = KeptFile(name=_NAME, size=120, written=1_700_000_000.25, modified=1_700_000_000, owner=1000)

_words = strategies.one_of(
    strategies.from_regex(r"\A-?[0-9]{1,20}(\.[0-9]{1,3})?\Z"),
    strategies.sampled_from([_NAME, f"{_NAME}ng.zst", "nan", "1_0", "../x", f"../{_NAME}", f"/{_NAME}"]),
    strategies.text(max_size=12),
)


class LineTests(SynchronousTestCase):
    """A line of the list."""

    def test_there_and_back(self) -> None:
        """What was made a line of is read from it."""
        self.assertEqual(_FILE.line(), f"1700000000.250 120 1700000000 1000 {_NAME}")
        for suffix in (".pcap", ".pcapng", ".pcapng.zst", ".pcap.gz"):
            file = KeptFile(
                name=f"web1-eth0-1700000000-abc{suffix}", size=1, written=1.0, modified=-1, owner=0
            )
            self.assertEqual(read_line(file.line()), file)

    def test_others(self) -> None:
        """Nothing else is."""
        for line in (
            "",
            _NAME,
            _FILE.line() + " ",
            "-" + _FILE.line() + "\n",
            _FILE.line().replace(" 120 ", " 1_2 "),
            _FILE.line().replace(" 120 ", " -1 "),
            _FILE.line().replace("1700000000.250", "nan"),
            _FILE.line().replace("1700000000.250", "inf"),
            _FILE.line().replace(_NAME, "a.pcap"),
            _FILE.line().replace(_NAME, f".{_NAME}"),
            _FILE.line().replace(_NAME, f"../{_NAME}"),
            _FILE.line().replace(_NAME, f"/{_NAME}"),
            _FILE.line().replace(_NAME, f"web1-{'x' * 300}{_NAME}"),
            _FILE.line().replace(_NAME, "wéb1-eth0-1700000000-abc.pcap"),
        ):
            self.assertIs(read_line(line), None, line)

    @seeded
    @settings(max_examples=500)
    @given(strategies.lists(_words, min_size=4, max_size=6))
    def test_no_path(self, words: list[str]) -> None:
        """Whatever a line is, the name in it is that of a capture, in the directory."""
        file = read_line(" ".join(words))
        if file is not None:
            self.assertNotIn("/", file.name)
            self.assertFalse(file.name.startswith("."))
            self.assertEqual(file.line(), " ".join(words))


class ClockTests(SynchronousTestCase):
    """How old something is."""

    def clock(self, began: float) -> SteadyClock:
        """A clock that was made at that time, and has gone for a hundred seconds since."""
        self.seconds = 5000.0
        clock = SteadyClock(lambda: began, lambda: self.seconds)
        self.seconds += 100.0
        return clock

    def test_age(self) -> None:
        """It is by the wall clock of the start, and goes on steadily."""
        clock = self.clock(1_700_000_000.0)
        self.assertEqual(clock.now(), 1_700_000_100.0)
        self.assertEqual(clock.age(1_699_999_990.0), 110.0)
        self.assertEqual(clock.age(1_700_000_090.0), 10.0)

    def test_unset(self) -> None:
        """What was written while a clock was not set, or is in the future, is as old as the clock."""
        clock = self.clock(1_700_000_000.0)
        for written in (0.0, 1000.0, 1_700_000_101.0, 2e9):
            self.assertEqual((clock.age(written), clock.is_sane(written)), (100.0, False))
        # A clock that isn't set itself: what it has seen itself is known, and nothing else.
        clock = self.clock(60.0)
        self.assertEqual((clock.age(150.0), clock.is_sane(150.0)), (10.0, True))
        for written in (30.0, 1_700_000_000.0):
            self.assertEqual((clock.age(written), clock.is_sane(written)), (100.0, False))
