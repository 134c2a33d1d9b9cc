"""C{[[interface]] history}, and what comes with it."""

from __future__ import annotations

import json

from pcapsvc.core.history import HistoryBounds
from pcapsvc.settings.interface import histories, history_bytes
from tests.unit.settings_case import LEAST, SettingsTestCase

MIB = 1 << 20


def interface(name: str = "eth0", **keys: object) -> str:
    """An C{[[interface]]} with these keys."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": name, **keys}.items()]
    return "\n".join(["", "[[interface]]", *lines, ""])


class HistorySettingsTests(SettingsTestCase):
    """Which histories are configured."""

    def bounds(self, text: str) -> dict[str, HistoryBounds]:
        """The histories of a configuration."""
        return histories(self.load(text))

    def test_none(self) -> None:
        """Without C{history}, nothing is kept, and no memory is taken."""
        settings = self.load(LEAST + interface() + interface("lo"))
        self.assertEqual((histories(settings), history_bytes(settings)), ({}, 0))

    def test_defaults(self) -> None:
        """Seconds are enough. What is kept of a packet is what captures keep of it."""
        text = LEAST.replace("[redis]", "snaplength = 96\n[redis]") + interface(history=60)
        expected = HistoryBounds(seconds=60, size_bytes=64 * MIB, snap_length=96)
        self.assertEqual(self.bounds(text), {"eth0": expected})

    def test_all_keys(self) -> None:
        """Each interface has its own, in the order of the configuration, C{any} and C{lo} like others."""
        given = {"history": 5, "historysize": 4 * MIB, "historysnap": 200, "historyfilter": "not\rport 22"}
        text = LEAST + interface("lo", **given) + interface("eth0") + interface("any", History=604_800)
        found = self.bounds(text)
        self.assertEqual([*found], ["lo", "any"])
        self.assertEqual(
            found["lo"],
            HistoryBounds(seconds=5, size_bytes=4 * MIB, snap_length=200, bpf="not port 22"),
        )
        self.assertEqual(history_bytes(self.load(text)), 68 * MIB)

    def test_empty(self) -> None:
        """An empty text is the same as leaving a key out; but for the size, which has a default."""
        empty = {"historysnap": "", "historyfilter": ""}
        self.assertEqual(self.bounds(LEAST + interface(history="", **empty)), {})
        self.assertEqual([*self.bounds(LEAST + interface(history=9, **empty))], ["eth0"])
        self.assertIn('[0].historysize = ""', self.only_problem(LEAST + interface(history=9, historysize="")))
        self.assertIn("interface[0].foo: is not a known key", self.only_problem(LEAST + interface(foo="")))

    def test_bounds_of_numbers(self) -> None:
        """Each number has bounds; to switch a history off, the key is left out."""
        rule = "must be a whole number of seconds, from 1 to 604800"
        for value in (0, -1, 604_801, 1.5, "60"):
            self.assertEqual(
                self.only_problem(LEAST + interface(history=value)),
                f"interface[0].history = {json.dumps(value)}: {rule}",
            )
        size = self.only_problem(LEAST + interface(history=1, historysize=4 * MIB - 1))
        self.assertIn(
            f"interface[0].historysize = 4194303: must be a whole number of bytes, from {4 * MIB}", size
        )
        snap = self.only_problem(LEAST + interface(history=1, historysnap=262_145))
        self.assertIn("interface[0].historysnap = 262145: must be a whole number of bytes, from 1", snap)

    def test_without_history(self) -> None:
        """Each of the other keys is a problem without C{history}, but not beside one that is wrong."""
        keys = {"historysize": 8 * MIB, "historysnap": 96, "historyfilter": "tcp"}
        self.assertEqual(
            self.problems(LEAST + interface("lo") + interface(**keys)),
            [f"interface[1].{key}: has no effect without interface[1].history" for key in keys],
        )
        self.assertIn("[0].history = 0", self.only_problem(LEAST + interface(history=0, **keys)))

    def test_filter(self) -> None:
        """A filter is checked as that of a request, at its own path."""
        for bpf, problem in (
            ("host nosuch", '= "nosuch": is neither a keyword of pcap-filter(7) nor an address'),
            ("ip protochain 6", "= \"protochain\": can't be used: the kernel can't run it"),
            ("tcp " * 200, ": must have up to 512 characters on this node, and has 800"),
            ("a\x01b", '= "a\\u0001b": must be a filter without control characters'),
        ):
            text = LEAST + interface("lo") + '[[interface]]\nname = "eth0"\nhistory = 5\n'
            text += 'historyfilter = "' + bpf.replace("\x01", "\\u0001") + '"\n'
            self.assertIn(f"interface[1].historyfilter {problem}".replace(" :", ":"), self.only_problem(text))

    def test_snap_length(self) -> None:
        """No more of a packet is kept than a request may ask for."""
        text = LEAST.replace("[redis]", "maxsnaplength = 1000\n[redis]")
        self.assertEqual(
            self.only_problem(text + interface(history=5, historysnap=1001)),
            "interface[0].historysnap = 1001: must be at most general.maxsnaplength, which is 1000",
        )
        self.assertEqual(self.bounds(text + interface(history=5))["eth0"].snap_length, 512)

    def test_twice(self) -> None:
        """An interface has one history."""
        self.assertEqual(
            self.only_problem(LEAST + interface(history=5) + interface(history=6)),
            'interface[1].name = "eth0": must not be given twice',
        )

    def test_memory(self) -> None:
        """All histories and one capture fit into the memory for captures; what is wrong is not added up."""
        general = f"maxbytes = {10 * MIB}\nmaxmemory = {100 * MIB}\n[redis]"
        text = LEAST.replace("[redis]", general) + interface("lo", history=5, historysize=26 * MIB)
        self.assertEqual(len(self.bounds(text + interface(history=5))), 2)
        too_large = interface(history=5, historysize=64 * MIB + 1)
        self.assertEqual(
            self.only_problem(text + too_large),
            f"general.maxmemory = {100 * MIB}: must be at least {100 * MIB + 1}: {90 * MIB + 1} for histories"
            f" ([[interface]] historysize), and {10 * MIB} for a capture (general.maxbytes)",
        )
        self.assertIn("[1].historysize = 3", self.only_problem(text + interface(history=5, historysize=3)))

    def test_all_problems_at_once(self) -> None:
        """Every problem is reported, by its path."""
        text = LEAST + interface(history=5, historysnap=0) + interface("lo", history=5, historyfilter="x y")
        found = [problem.partition(" = ")[0] for problem in self.problems(text)]
        self.assertEqual(
            found, ["interface[0].historysnap", "interface[1].historyfilter", "interface[1].historyfilter"]
        )
