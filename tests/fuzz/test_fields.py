"""
Values of single fields, by the thousand: of requests, of the configuration, of the files that it names, and
of what others may have written.
"""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.allowed_hosts import BadHost, parse_host, parse_pattern
from pcapsvc.core.artifact import Artifact
from pcapsvc.core.compression import CHOICES
from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import check_fields, fields_by_key
from pcapsvc.core.folder import PLACEHOLDERS, folder_of, problem_with
from pcapsvc.core.kept_file import KeptFile, Limits, SteadyClock
from pcapsvc.core.labels import Labels
from pcapsvc.core.request import CaptureRequest, parse_request
from pcapsvc.destinations.cloudshark.settings import CloudSharkSettings
from pcapsvc.destinations.local.ledger import LEDGER, Ledger
from pcapsvc.destinations.local.settings import LocalSettings, RetentionSettings
from pcapsvc.destinations.local.sweep import Sweeper
from pcapsvc.destinations.puturl.settings import PutUrlSettings
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.destinations.s3.options import STORAGE_CLASSES
from pcapsvc.destinations.s3.settings import S3Settings
from pcapsvc.destinations.sftp.hostkey import SIGNATURES, parse_host_key
from pcapsvc.destinations.sftp.settings import SftpSettings
from pcapsvc.destinations.sftp.ssh import load_key
from pcapsvc.destinations.webhook.headers import RESERVED, read_headers
from pcapsvc.destinations.webhook.settings import WebhookSettings
from pcapsvc.settings.general import GeneralSettings
from pcapsvc.settings.kinds import conversion_of
from pcapsvc.settings.section import Section
from tests.chance import chance
from tests.fuzz import targets
from tests.fuzz.values import VALUES, some_value
from tests.unit.contents import MemfdContent

_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIbLIfyNgHZyWg1Jv1yCFVQKPuPqPk2k3Ht0aX5pTtrF"


def as_json(random: Random, text: str) -> Any:
    """A value of any type that JSON has, mostly the text."""
    if random.random() < 0.9:
        return text
    return random.choice((None, True, 0, -1, 1.5, [], [text], {text: text}, [[text]], 10**30))


def as_toml(value: Any) -> str:
    """A value of JSON in TOML, which has no null."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_toml(key)} = {as_toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    text = json.dumps("" if value is None else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def some_setting(random: Random, key: str, good: tuple[str, ...]) -> Any:
    """A value of a key, as TOML may have it."""
    value = as_json(random, some_value(random, good))
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 100:
        return int(value)
    if value in ("true", "false"):
        return value == "true"
    return [value] if key == "allow" else value


def assert_one_line(problem: Problem) -> None:
    """A problem can be logged."""
    assert not any(each < " " or each in "\x7f\x85\u2028\u2029\u202e" for each in str(problem)), repr(problem)


class RequestFieldTests(SynchronousTestCase):
    """The fields of requests that say in which form captures are delivered, and where."""

    def check(self, field: str, good: tuple[str, ...], is_good: Callable[[str], object]) -> None:
        """
        Each value is accepted or rejected by its field's path, within one line.

        @param is_good: whether an accepted value is one.
        """
        random = chance(self.id())
        accepted = 0
        for _ in range(VALUES):
            value = as_json(random, some_value(random, good))
            body = json.dumps({"node": "any", "interface": ["lo"], field: value}).encode()
            if not targets.request(body):
                continue
            request = parse_request(body, targets.BOUNDS)
            assert isinstance(request, CaptureRequest)
            found = getattr(request, field, None) or request.options.get("s3", {}).get(field)
            accepted += found is not None
            self.assertTrue(found is None or is_good(found), repr(value))
        self.assertGreater(accepted, 0)

    def test_format(self) -> None:
        """C{format} is one of those that there are."""
        self.check("format", targets.BOUNDS.formats, targets.BOUNDS.formats.__contains__)

    def test_compress(self) -> None:
        """C{compress} is one of those that there are."""
        self.check("compress", CHOICES, CHOICES.__contains__)

    def test_storage_class(self) -> None:
        """C{storageclass} is one of those that there are."""
        self.check("storageclass", STORAGE_CLASSES, STORAGE_CLASSES.__contains__)

    def test_kms_key_id(self) -> None:
        """C{kmskeyid} can be sent in a header."""
        good = (
            "alias/captures",
            "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        )
        self.check(
            "kmskeyid", good, lambda value: value.isascii() and value.isprintable() and " " not in value
        )

    def test_folder(self) -> None:
        """C{folder} has placeholders that are known, and no part that leads elsewhere."""
        good = ("pcaps/{node}/{date}", "a", "{{x}}/{customer}-{alertid}")
        self.check(
            "folder",
            good,
            lambda value: problem_with(value) is None and not {".", ".."} & {*value.split("/")},
        )


class FolderTests(SynchronousTestCase):
    """The folder of S3 and of SFTP, with what its placeholders stand for."""

    def setUp(self) -> None:
        self.content = MemfdContent(b"pcap")
        self.addCleanup(self.content.close)

    def artifact(self, random: Random, options: dict[str, Any]) -> Artifact:
        """A capture, all of whose names are hostile."""
        node, interface, customer, alert, capture_id = (
            some_value(random, ("web-1", "eth0.5", "acme", "..", ".")) for _ in range(5)
        )
        return Artifact(
            capture_id=capture_id,
            name="web1-eth0-1700000000-abc.pcap",
            media_type="",
            tags="",
            content=self.content,
            options={"s3": options},
            labels=Labels(via="http", customer=customer, alertid=alert, interface=interface),
            node=node,
            started=random.choice((None, -1.0, 0.0, 1.7e9, 1e300, float("inf"))),
        )

    def assert_within(self, found: str, template: str) -> None:
        """No value adds a part to a folder, hides one, or leads anywhere else."""
        parts = template.split("/")
        self.assertEqual(len(found.split("/")), len(parts), template)
        for before, after in zip(parts, found.split("/"), strict=True):
            self.assertNotIn(after, (".", ".."))
            self.assertEqual(bool(before), bool(after), template)
            self.assertFalse(after.startswith(".") and not before.startswith("."), template)
        self.assertNotRegex(found, r"[\x00-\x1f\\\u2028\u202e]")
        joined = posixpath.normpath(posixpath.join("/base", found.strip("/"), "file"))
        self.assertTrue(joined.startswith("/base/"), template)

    def test_asked(self) -> None:
        """Whatever folder a request names, and whatever placeholders stand for, S3 stores the file in it."""
        random = chance(self.id())
        s3 = S3(
            run_in_thread=lambda put, target, body, *rest: (body.close(), succeed(None))[1],
            run_elsewhere=lambda *_: self.fail("elsewhere"),
            bucket="captures",
            folder="pcaps/{node}/{customer}",
        )
        good = ("pcaps/{node}/{date}", "/{customer}/", "{interface}{id}", ".{node}", "{year}.{month}/a..b")
        pieces = [f"{{{name}}}" for name in PLACEHOLDERS]
        accepted = 0
        for number in range(VALUES):
            # None is what a capture that was spooled may have.
            options: dict[str, Any] = (
                {"folder": None} if number % 10 == 0 else {"folder": some_value(random, good, pieces)}
            )
            if [*s3.check(options)]:
                continue
            accepted += 1
            template = options["folder"] or ""
            artifact = self.artifact(random, options)
            found = folder_of(template, artifact)
            self.assert_within(found, template)
            stored = self.successResultOf(s3.store(artifact))
            folder = found.strip("/")
            self.assertEqual(
                stored.location,
                f"s3://captures/{folder}/{artifact.name}" if folder else f"s3://captures/{artifact.name}",
            )
            self.content.opened.clear()
        self.assertGreater(accepted, VALUES // 5)


class AllowedHostTests(SynchronousTestCase):
    """C{[puturl] allow}."""

    def test_patterns(self) -> None:
        """A pattern allows what it says, and nothing that only looks like it."""
        random = chance(self.id())
        good = ("*.example.com", "example.com", "example.com:8443", "10.0.0.1", "[fd00::1]:*", "*", "*:8443")
        hosts = (
            "a.example.com",
            "example.com",
            "evilexample.com",
            "a.example.com.evil",
            "10.0.0.1",
            "[fd00::1]",
        )
        accepted = 0
        for _ in range(VALUES):
            text = some_value(random, good, good)
            try:
                pattern = parse_pattern(text)
            except BadHost:
                continue
            accepted += 1
            try:
                host = parse_host(some_value(random, hosts, hosts))
            except BadHost:
                continue
            port = random.choice((80, 443, 8443, 22))
            if not pattern.matches(host, port, "https"):
                continue
            name, colon, number = text.lower().rpartition(":")
            if not colon or text.endswith("]") or pattern.port is None:
                name, number = text.lower(), "443"
            self.assertIn(number, ("*", str(port)), text)
            name, shown = name.strip("[]"), str(host)
            is_below = name.startswith("*.") and shown.endswith(name[1:]) and shown != name[2:]
            self.assertTrue(name == "*" or is_below or parse_host_or_none(name) == host, (text, host))
        self.assertGreater(accepted, VALUES // 10)


def parse_host_or_none(text: str) -> object:
    """A host; an IPv6 address without brackets as well."""
    try:
        return parse_host(f"[{text}]" if ":" in text else text)
    except BadHost:
        return None


class ConfigurationTests(SynchronousTestCase):
    """The keys of destinations, and the files that they name."""

    def test_keys(self) -> None:
        """Each value of a key is accepted, or breaks a rule that can be logged. Nothing else is raised."""
        random = chance(self.id())
        for section, keys in _KEYS.items():
            for key, good in keys.items():
                field = fields_by_key(section)[key]
                convert = conversion_of(field.type)
                accepted = 0
                for _ in range(VALUES):
                    value = some_setting(random, key, good)
                    values, problems = check_fields(section, {key: value})
                    for problem in problems:
                        assert_one_line(problem)
                    if problems:
                        continue
                    try:
                        if convert is not None and values[field.name] is not None:
                            convert(values[field.name])
                    except ValueError as error:
                        assert_one_line(Problem(path=key, rule=str(error)))
                        continue
                    accepted += 1
                self.assertGreater(accepted, 0, key)

    def test_configurations(self) -> None:
        """The same, within a whole configuration, which takes a hundred times as long."""
        random = chance(self.id())
        accepted = 0
        for _ in range(max(200, VALUES // 100)):
            section = random.choice([*_KEYS])
            key = random.choice([*_KEYS[section]])
            tables = {str(section.table): "", "general": _GENERAL, "http": _HTTP}
            tables[str(section.table)] += (
                f"{key} = {as_toml(some_setting(random, key, _KEYS[section][key]))}\n"
            )
            text = "".join(f"[{name}]\n{lines}" for name, lines in tables.items())
            accepted += targets.settings(text.encode())
        self.assertGreater(accepted, 0)

    def test_headers(self) -> None:
        """Whatever is in C{headersfile}: what is sent are names and values that end no line."""
        random = chance(self.id())
        good = ("Authorization: Bearer abc", "X-A: b\nX-C: d", "# a\n\nX-A:b\r\n")
        pieces = (*RESERVED, "X-Pcapsvc-Capture", ": ", "\n", "\v", "\f", "\x1c", "a" * 5000)
        accepted = 0
        with tempfile.NamedTemporaryFile() as file:
            for _ in range(VALUES):
                text = some_value(random, good, pieces)
                _rewrite(file.name, text)
                try:
                    headers = read_headers(file.name)
                except ValueError as error:
                    self.assertNotRegex(str(error), r"[\x00-\x1f]")
                    continue
                accepted += 1
                for header in headers:
                    self.assertRegex(header.name, r"\A[!-9;-~]+\Z")
                    self.assertRegex(header.text, r"\A[\t -~]+\Z")
                    self.assertNotIn(header.name.lower(), RESERVED)
        self.assertGreater(accepted, VALUES // 20)

    def test_host_keys(self) -> None:
        """Whatever is in C{hostkey}: a key of a type that is known, or an error."""
        random = chance(self.id())
        good = (_HOST_KEY, f"files.example.org {_HOST_KEY}", f"{_HOST_KEY} comment")
        accepted = 0
        for _ in range(VALUES):
            try:
                key = parse_host_key(some_value(random, good, (*SIGNATURES, " ", "AAAA", "==")))
            except ValueError:
                continue
            accepted += 1
            self.assertIn(key.kind, SIGNATURES)
            self.assertIn(key.kind.encode(), key.blob[:32])
        self.assertGreater(accepted, VALUES // 20)

    def test_key_files(self) -> None:
        """Whatever is in C{keyfile}: an error that shows nothing of it."""
        random = chance(self.id())
        begin, end = (f"-----{word} OPENSSH PRIVATE KEY-----" for word in ("BEGIN", "END"))
        body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQyNTUxOQ"
        good = (f"{begin}\n{body}\n{end}\n", f"{begin.replace('OPENSSH', 'RSA')}\n{body}\n", _HOST_KEY)
        for _ in range(VALUES):
            text = some_value(random, good, (begin, end, body, "Proc-Type: 4,ENCRYPTED\n", "AAAA", "=="))
            error = self.assertRaises(ValueError, load_key, text.encode(), random.choice((None, "x")))
            self.assertNotIn(body[:20], str(error))


class LedgerTests(SynchronousTestCase):
    """The list of captures that may be removed from the local directory, which somebody has written to."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        (self.directory / "captures").mkdir(parents=True)
        self.captures = self.directory / "captures"

    def test_nothing_else(self) -> None:
        """Whatever is in it: only files are removed that it describes exactly, and none elsewhere."""
        random = chance(self.id())
        ours = [f"web1-eth0-170000000{number}-abc{number}.pcap" for number in range(4)]
        others = ["../other.pcap", ".hidden", "notes.txt", "web1-eth0-1700000000-abc9.pcap.orig.old.older.x"]
        names = (*ours, *others, "..", "/etc/passwd", "../captures/web1-eth0-1700000000-abc0.pcap")
        removed = 0
        for _ in range(max(1, VALUES // _LINES)):
            lines = []
            for name in (*ours, *others):
                path = self.captures / name
                path.write_bytes(b"pcap")
            for _ in range(_LINES):
                found = (self.captures / random.choice((*ours, *others))).stat()
                line = KeptFile(
                    name=random.choice(names),
                    size=found.st_size,
                    written=1_700_000_000.0,
                    modified=int(found.st_mtime),
                    owner=found.st_uid,
                ).line()
                lines.append(some_value(random, (line,), (*names, " ", "-", "nan", "1_7", "\n")))
            (self.captures / LEDGER).write_text("\n".join(lines))
            (self.captures / LEDGER).chmod(0o600)
            clock = SteadyClock(lambda: 1_800_000_000.0, lambda: 0.0)
            sweeper = Sweeper(str(self.captures), Ledger(clock), Limits(max_age_seconds=1.0), clock)
            while (swept := sweeper.turn()).has_more:
                pass
            self.assertEqual(swept.problems, ())
            removed += len(swept.removals)
            self.assertLessEqual({removal.name for removal in swept.removals}, {*ours})
            for name in others:
                self.assertTrue((self.captures / name).exists(), name)
        self.assertGreater(removed, 0)


# How many lines one list has.
_LINES = 200


def _rewrite(path: str, text: str) -> None:
    with open(path, "wb") as file:
        file.write(text.encode())


# What every configuration needs.
_GENERAL = "writelocal = true\nlocaldir = '/tmp'\n"
_HTTP = "listen = 'tcp:1:interface=127.0.0.1'\n"
# The keys that are fuzzed, with values that are accepted.
_KEYS: dict[type[Section], dict[str, tuple[str, ...]]] = {
    GeneralSettings: {"format": ("pcap", "pcapng"), "nanoseconds": ("true",)},
    LocalSettings: {"localcompress": CHOICES},
    RetentionSettings: {"maxsize": ("1",), "maxage": ("1",)},
    CloudSharkSettings: {"compress": ("gzip", "none")},
    S3Settings: {
        "folder": ("pcaps/{node}/{date}",),
        "storageclass": STORAGE_CLASSES,
        "kmskeyid": ("alias/captures",),
        "compress": CHOICES,
    },
    SftpSettings: {
        "host": ("files.example.org", "::1"),
        "port": ("22",),
        "user": ("captures",),
        "keyfile": ("/dev/zero", "/etc/passwd", "/proc/self/mem"),
        "hostkey": (_HOST_KEY,),
        "directory": ("/srv/{node}", "captures/{date}"),
        "compress": CHOICES,
    },
    PutUrlSettings: {
        "allow": ("*.amazonaws.com", "[fd00::1]:8443"),
        "cafile": ("/dev/zero", "/etc/passwd"),
        "compress": CHOICES,
    },
    WebhookSettings: {"send": ("capture", "event"), "verify": ("/dev/zero", "true"), "compress": CHOICES},
}
