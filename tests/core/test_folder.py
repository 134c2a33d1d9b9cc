"""Placeholders in a folder."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.folder import PLACEHOLDERS, checked_folder, folder_of, problem_with
from pcapsvc.core.labels import Labels


def artifact(**changes: Any) -> Artifact:
    """A capture that began on 14 November 2023 at 22:13:20 UTC."""
    labels = {"customer": "acme", "alertid": 7, "interface": "eth0.5", **changes.pop("labels", {})}
    given: dict[str, Any] = {
        "capture_id": "6991f016514d",
        "name": "web_1-eth0.5-1700000000-6991f016514d.pcap",
        "media_type": "",
        "tags": "",
        "content": None,
        "options": {},
        "node": "web 1",
        "started": 1_700_000_000.5,
        **changes,
    }
    return Artifact(labels=Labels(via="http", **labels), **given)


class FolderTests(SynchronousTestCase):
    """L{folder_of} and L{problem_with}."""

    def test_all(self) -> None:
        """Each placeholder stands for something of the capture; the time is that of its beginning, in UTC."""
        template = "/".join(f"{{{name}}}" for name in PLACEHOLDERS)
        self.assertEqual(
            folder_of(template, artifact()),
            "web_1/eth0.5/2023-11-14/2023/11/14/22/acme/7/6991f016514d",
        )
        self.assertEqual(folder_of("a/{year}{month}-x", artifact()), "a/202311-x")

    def test_none(self) -> None:
        """A folder without braces stays as it is."""
        for folder in ("", "a/b", "/a//b/", "ä ö"):
            self.assertEqual(folder_of(folder, artifact()), folder)
            self.assertIs(problem_with(folder), None)

    def test_braces(self) -> None:
        """A brace is written twice."""
        self.assertEqual(folder_of("{{node}}/{{{node}}}", artifact()), "{node}/{web_1}")
        self.assertIs(problem_with("{{node}}/{{{node}}}"), None)

    def test_problems(self) -> None:
        """What isn't a placeholder is a problem, by name."""
        known = "the known ones are {node}, {interface}, {date}, {year}, {month}, {day}, {hour}, {customer}, "
        known += "{alertid}, {id}"
        for folder, problem in (
            ("a/{nod}", "has the unknown placeholder '{nod}'; "),
            ("a/{}", "has the unknown placeholder '{}'; "),
            ("a/{Node}", "has the unknown placeholder '{Node}'; "),
            ("a/{node!r}", "has the unknown placeholder '{node!r}'; "),
            ("a/{node.x}", "has the unknown placeholder '{node.x}'; "),
            ("a/{node", "has a single '{'; a brace is written twice, and "),
            ("a/node}", "has a single '}'; a brace is written twice, and "),
            ("a/{{node}", "has a single '}'; a brace is written twice, and "),
        ):
            self.assertEqual(problem_with(folder), problem + known, folder)
            self.assertIn(problem, str(self.assertRaises(ValueError, checked_folder, folder)))

    def test_unknown(self) -> None:
        """What isn't known is an underscore, so that the number of parts is always the same."""
        nothing = artifact(labels={"customer": None, "alertid": None})
        self.assertEqual(folder_of("{customer}/{alertid}/x", nothing), "_/_/x")

    def test_hostile(self) -> None:
        """Values neither add a part nor lead anywhere else."""
        for value, part in (
            ("..", "_"),
            (".", "_"),
            ("../../etc", "_.._etc"),
            ("/etc", "_etc"),
            (".hidden", "hidden"),
            ("a\\b\x00c\nd", "a_b_c_d"),
            ("", "_"),
            ("{node}", "_node_"),
            ("Zoë & Söhne", "Zo_S_hne"),
            ("x" * 1000, "x" * 100),
        ):
            found = folder_of("a/{customer}/b", artifact(labels={"customer": value}))
            self.assertEqual(found, f"a/{part}/b")
            self.assertEqual(folder_of("{node}", artifact(node=value or None, name="x")), part)

    def test_spooled_before(self) -> None:
        """A capture that an earlier version has spooled has its node and its time in its name only."""
        for name, node in (
            ("web-1-eth0-1700000000-6991f016514d.pcap", "web-1"),
            ("web_1-eth0.5-1700000000-6991f016514d.pcapng.zst", "web_1"),
        ):
            old = artifact(node=None, started=None, name=name)
            self.assertEqual(folder_of("{node}/{date}/{hour}", old), f"{node}/2023-11-14/22")
        older = artifact(node=None, started=None, labels={"interface": None})
        self.assertEqual(folder_of("{interface}", older), "eth0.5")
        self.assertEqual(folder_of("{node}/{year}", artifact(node=None, started=None, name="x")), "_/1970")
        for started in (-1.0, 1e300, float("inf")):
            self.assertRegex(folder_of("{date}", artifact(started=started)), r"\A(1970-01-01|9999-12-31)\Z")
