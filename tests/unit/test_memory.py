"""The memory that a process may use, by its control groups and the host."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.admission import Admission, NoRoom, Reservation
from pcapsvc.host.memory import PROCESS_BYTES, ProcessMemory
from pcapsvc.host.memory_check import MemoryCheck
from pcapsvc.settings import general
from tests.unit.settings_case import LEAST, SettingsTestCase

MIB = 1 << 20


class Host:
    """A host's files, in a directory of its own."""

    def __init__(self, folder: str, *, total: int = 8192 * MIB) -> None:
        self.root = Path(folder).absolute()
        (self.root / "proc").mkdir(parents=True)
        self.write(
            "meminfo", f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {total // 2048} kB\n"
        )

    def write(self, path: str, text: object) -> None:
        """Write a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def mount(self, cgroup: str, *mounts: tuple[str, str, str]) -> None:
        """Have the process in groups, with hierarchies mounted: each a root, a kind, and options."""
        self.write("proc/cgroup", cgroup)
        lines = [
            f"{30 + at} 23 0:{at} {root} {self.root}/{kind} rw,relatime shared:9 - {kind} {kind} {options}"
            for at, (root, kind, options) in enumerate(mounts)
        ]
        self.write("proc/mountinfo", "\n".join(["23 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]))

    def group(self, path: str, limit: object, used: int, *, cached: int = 0, high: object = "max") -> None:
        """A group of version 2."""
        self.write(f"cgroup2/{path}/memory.max", limit)
        self.write(f"cgroup2/{path}/memory.high", high)
        self.write(f"cgroup2/{path}/memory.current", used)
        self.write(f"cgroup2/{path}/memory.stat", f"anon 5\ninactive_file {cached}\nactive_file 0\nshmem 7")

    def old_group(
        self, path: str, limit: int, used: int, *, cached: int = 0, above: int = 2**63 - 4096
    ) -> None:
        """A group of version 1."""
        self.write(f"cgroup/{path}/memory.limit_in_bytes", limit)
        self.write(f"cgroup/{path}/memory.usage_in_bytes", used)
        self.write(
            f"cgroup/{path}/memory.stat",
            f"cache 9\nhierarchical_memory_limit {min(limit, above)}\ntotal_inactive_file {cached}",
        )

    @property
    def memory(self) -> ProcessMemory:
        """What the process may use."""
        return ProcessMemory(str(self.root / "proc"), str(self.root / "meminfo"))


class ProcessMemoryTests(SynchronousTestCase):
    """L{ProcessMemory}."""

    def setUp(self) -> None:
        """A host with 8 GiB."""
        self.host = Host(self.mktemp())

    def limits(self, enough: int = 2**62) -> tuple[int | None, int | None]:
        """The limit, and what is free, in MiB."""
        found = self.host.memory.limit_bytes(), self.host.memory.free_bytes(enough)
        return tuple(None if each is None else each // MIB for each in found)  # type: ignore[return-value]

    def test_host(self) -> None:
        """Without groups, the host's own memory is the limit; without any figures, there is none."""
        self.assertEqual(self.limits(), (8192, 4096))
        (self.host.root / "meminfo").unlink()
        self.assertEqual(self.limits(), (None, None))

    def test_version_2(self) -> None:
        """The lowest limit of a group and its ancestors counts; the cache of files is free memory."""
        self.host.mount("0::/system.slice/pcapsvc.service", ("/", "cgroup2", "rw,nsdelegate"))
        self.host.group("system.slice/pcapsvc.service", "max", 10 * MIB)
        self.host.group("system.slice", 100 * MIB, 80 * MIB, cached=30 * MIB)
        self.assertEqual(self.limits(), (100, 50))
        self.host.group("system.slice/pcapsvc.service", 60 * MIB, 20 * MIB)
        self.assertEqual(self.limits(), (60, 40))
        self.host.group("system.slice/pcapsvc.service", "max", 20 * MIB, high=40 * MIB)
        self.assertEqual(self.limits(), (40, 20))

    def test_version_1(self) -> None:
        """So it is with version 1, in a hierarchy of its own, beside one of version 2 without memory."""
        self.host.mount(
            "4:cpu,memory:/docker/abc\n0::/other", ("/", "cgroup2", "rw"), ("/", "cgroup", "rw,cpu,memory")
        )
        self.host.old_group("docker/abc", 2**63 - 4096, 20 * MIB)
        self.host.old_group("docker", 100 * MIB, 90 * MIB, cached=40 * MIB)
        self.host.old_group("", 2**63 - 4096, 2000 * MIB)
        self.assertEqual(self.limits(), (100, 50))

    def test_invisible_ancestors(self) -> None:
        """In a container only the own group is mounted; version 1 tells the limits above it all the same."""
        self.host.mount("4:memory:/docker/abc", ("/docker/abc", "cgroup", "rw,memory"))
        self.host.old_group("", 2**63 - 4096, 20 * MIB, above=70 * MIB)
        self.assertEqual(self.limits()[0], 70)
        self.host.mount("0::/../../x", ("/", "cgroup2", "rw"))
        self.host.group("", 90 * MIB, 20 * MIB)
        self.assertEqual(self.limits(), (90, 70))

    def test_enough(self) -> None:
        """If there is enough in any case, the statistics of a group are not read."""
        self.host.mount("0::/a", ("/", "cgroup2", "rw"))
        self.host.group("a", 100 * MIB, 80 * MIB, cached=30 * MIB)
        self.assertEqual(self.limits(10 * MIB)[1], 20)
        self.assertEqual(self.limits(21 * MIB)[1], 50)

    def test_this_host(self) -> None:
        """The files of this host can be read, and are consistent."""
        memory = ProcessMemory()
        limit, free = memory.limit_bytes(), memory.free_bytes(2**62)
        assert limit is not None
        assert free is not None
        self.assertGreater(limit, 0)
        self.assertLessEqual(free, limit)

    def test_at_most(self) -> None:
        """Captures leave room for the process, but have a quarter of a very small group."""
        self.host.mount("0::/a", ("/", "cgroup2", "rw"))
        self.host.group("a", 100 * MIB, 0)
        self.assertEqual(self.host.memory.at_most(1024 * MIB), 100 * MIB - PROCESS_BYTES)
        self.assertEqual(self.host.memory.at_most(MIB), MIB)
        self.host.group("a", 40 * MIB, 0)
        self.assertEqual(self.host.memory.at_most(1024 * MIB), 10 * MIB)


class AdmissionTests(SynchronousTestCase):
    """Captures begin only if the process may use the memory that they need."""

    def test_free(self) -> None:
        """What running captures may yet need, those that are being prepared and the new one must be free."""
        free, held = [1000], [0]
        admission = Admission(
            max_captures=10,
            max_memory_bytes=10**6,
            free_bytes=lambda enough: free[0],
            held_bytes=lambda: held[0],
            capture_overhead_bytes=10,
        )
        first = admission.reserve(1, 400)
        assert isinstance(first, Reservation)
        second = admission.reserve(1, 580)
        assert isinstance(second, Reservation)
        self.assertEqual(
            admission.reserve(1, 1),
            NoRoom(reason="1000 bytes of memory are free for this process, and captures may grow by 1011"),
        )
        second.release()
        first.started("a")
        free[0], held[0] = 600, 400
        third = admission.reserve(1, 590)
        assert isinstance(third, Reservation)
        third.release()
        held[0] = 399
        self.assertIsInstance(admission.reserve(1, 590), NoRoom)

    def test_unknown(self) -> None:
        """If it isn't known what is free, only the configured limit counts."""
        admission = Admission(max_captures=10, max_memory_bytes=10**6)
        self.assertIsInstance(admission.reserve(1, 10**6), Reservation)


class SettingsTests(SettingsTestCase):
    """The defaults, and the check at the start."""

    def setUp(self) -> None:
        """A group of 100 MiB."""
        self.host = Host(self.mktemp())
        self.host.mount("0::/a", ("/", "cgroup2", "rw"))
        self.host.group("a", 100 * MIB, 0)
        self.patch(general, "ProcessMemory", lambda: self.host.memory)

    def limits(self, text: str) -> tuple[int, int]:
        """C{maxbytes} and C{maxmemory} of a configuration, in MiB."""
        settings = self.load(LEAST.replace("[redis]", f"{text}\n[redis]")).general
        return settings.max_bytes // MIB, settings.max_memory_bytes // MIB

    def test_defaults(self) -> None:
        """They stay within the group's limit; what is given stays as it is."""
        self.assertEqual(self.limits(""), (36, 36))
        self.assertEqual(self.limits(f"maxmemory = {500 * MIB}"), (95, 500))
        self.assertEqual(self.limits(f"maxbytes = {50 * MIB}"), (50, 50))
        self.assertEqual(self.limits(f"maxbytes = {5 * MIB}"), (5, 36))
        self.host.group("a", "max", 0)
        self.assertEqual(self.limits(""), (95, 1024))

    def test_check(self) -> None:
        """A larger limit than the group allows is a warning at the start."""
        lines: list[str] = []

        def observe(event: dict[str, object]) -> None:
            lines.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        MemoryCheck(36 * MIB, self.host.memory).startService()
        self.assertEqual(lines, [])
        MemoryCheck(500 * MIB, self.host.memory).startService()
        self.assertIn(
            f"maxmemory is {500 * MIB}, but this process may use {100 * MIB} bytes of memory", lines[0]
        )
        self.assertIn(f"captures may use {36 * MIB}", lines[0])
        MemoryCheck(500 * MIB, self.host.memory, history_bytes=30 * MIB).startService()
        self.assertIn(f"captures may use {6 * MIB}, and histories {30 * MIB}", lines[1])
