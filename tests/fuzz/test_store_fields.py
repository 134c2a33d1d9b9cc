"""100,000 values of each field that says where and how captures are stored."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import check_fields, fields_by_key
from pcapsvc.core.kept_file import KeptFile, read_line
from pcapsvc.destinations.local.settings import RetentionSettings
from pcapsvc.destinations.s3.options import check_options
from pcapsvc.destinations.s3.settings import S3Settings
from pcapsvc.destinations.sftp.settings import SftpSettings
from pcapsvc.settings.kinds import conversion_of
from tests.chance import chance

_NUMBER = 100_000
_TEXTS = (
    *("", "a", "/", "..", "../", "\\", "\x00", "\n", "\r", "\u2028", "\u202e", "é", "\U0001f4a9", "%2e", "~"),
    *(
        "{",
        "}",
        "{{",
        "}}",
        "{node}",
        "{date}",
        "{x}",
        "alias/",
        "arn:aws:kms:",
        "STANDARD",
        "GLACIER",
        ":22",
    ),
    *(
        "ssh-ed25519 ",
        "AAAAC3NzaC1lZDI1NTE5AAAAIF9h6rLqZE7x7Rk2bU2mvA0kE2Q3lVQJc7pT0s1yHkQe",
        "AAAAC3NzaC1lZDI1NTE5AAAA",
        "=",
        "localhost",
        "[::1]",
        "fe80::1%eth0",
        "user@",
        "x" * 300,
    ),
    *("/etc/passwd", "/dev/zero", "/proc/self/mem", "zstd", "gzip", "none", "'", '"', "$(id)", "`id`", ";"),
)
_OTHERS = (None, True, False, 0, 1, -1, 22, 65535, 65536, 2**63 - 1, 2**63, 0.5, float("inf"), [], {}, [""])


def _value(source: random.Random) -> Any:
    """Some value that TOML or JSON may have."""
    kind = source.randrange(10)
    if kind == 0:
        return source.choice(_OTHERS)
    if kind == 1:
        return source.randrange(-(2**16), 2**17)
    text = "".join(source.choices(_TEXTS, k=source.randrange(1, 5)))
    return [text] * source.randrange(3) if kind == 2 else text


class FieldsTests(SynchronousTestCase):
    """Each value is accepted, or refused with a rule on one line. Nothing hangs, nothing else is raised."""

    def assert_one_line(self, problem: Problem, value: object) -> None:
        """A problem can be logged."""
        for character in str(problem):
            if character < " " or character in "\x7f\x85\u2028\u2029\u202e":
                self.fail(f"{problem!r} of {value!r}")

    def test_settings(self) -> None:
        """The keys of the configuration."""
        source = chance(self.id())
        keys = {
            RetentionSettings: ("maxsize", "maxage"),
            S3Settings: ("folder", "storageclass", "kmskeyid"),
            SftpSettings: ("host", "port", "user", "keyfile", "hostkey", "directory", "compress"),
        }
        for section, names in keys.items():
            for name in names:
                field = fields_by_key(section)[name]
                convert = conversion_of(field.type)
                accepted = 0
                for _ in range(_NUMBER):
                    value = _value(source)
                    values, problems = check_fields(section, {name: value})
                    for problem in problems:
                        self.assert_one_line(problem, value)
                    if convert is None or problems or values[field.name] is None:
                        accepted += not problems
                        continue
                    try:
                        convert(values[field.name])
                    except ValueError as error:
                        self.assert_one_line(Problem(path=name, rule=str(error)), value)
                    else:
                        accepted += 1
                self.assertGreater(accepted, 0, name)

    def test_requests(self) -> None:
        """The fields of requests. What is accepted has no part that leads upwards."""
        source = chance(self.id())
        for name in ("folder", "storageclass", "kmskeyid"):
            accepted = 0
            for _ in range(_NUMBER):
                value = _value(source)
                problems = [*check_options({name: value})]
                for problem in problems:
                    self.assert_one_line(problem, value)
                if problems or value is None:
                    continue
                accepted += 1
                self.assertNotIn("..", value.split("/"))
                self.assertNotIn("\n", value)
            self.assertGreater(accepted, 0, name)

    def test_lists(self) -> None:
        """The lines of the list of captures. Whatever one says, it names a capture, and no path."""
        source = chance(self.id())
        line = KeptFile(
            name="web1-eth0-1700000000-6991f016514d.pcap", size=1, written=1.5, modified=1, owner=0
        ).line()
        accepted = 0
        for _ in range(_NUMBER):
            changed = list(line)
            for _ in range(source.randrange(4)):
                at = source.randrange(len(changed))
                changed[at] = source.choice(
                    ["", " ", "/", ".", "-", "0", "\n", "\x00", "é", "nan", changed[at]]
                )
            file = read_line("".join(changed))
            if file is None:
                continue
            accepted += 1
            self.assertNotIn("/", file.name)
            self.assertFalse(file.name.startswith("."))
        self.assertGreater(accepted, 1000)
