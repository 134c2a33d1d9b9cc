"""The configuration, from the file and the options to settings or problems."""

from __future__ import annotations

import os
import pickle
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial import unittest

from pcapsvc.core.errors import SettingsError
from pcapsvc.settings import OPTIONS, InterfaceAlias, Secret, Settings, load_settings
from pcapsvc.settings.listen import absolute_listener, read_listener
from pcapsvc.settings.schema import SECRETS, SECTIONS, keys_of
from peers.certificates import Authority, Certificate

ROOT = Path(__file__).resolve().parents[2]

#: The original's example, with the headers that its text lost.
ORIGINAL = """
[general]
maxpackets      = 50000
writelocal      = false
localdir        = "/tmp"
snaplength      = 500
defaulttimeout  = 10
maxtimeout      = 3600
maxduration     = 3600
maxbytes        = 100000000
packetdebug     = false
logrequests     = false

[cloudshark]
host        = "www.cloudshark.org"
scheme      = "https"
port        = 443
timeout     = 0
token       = "fffffffffffffffffff"
upload      = true

[redis]
listen		= true
host        = "node.running.redis.net"
port        = 6379
channel     = "capture"
auth		= "password"

[kafka]
listen      = true
server      = ["", "myhost.example.com:9092"]
topic       = "capture"

# consult /usr/include/sys/syslog.h for Priority which is a combination
# of facility and severity
[syslog]
priority    = 25
tag         = "pcapdaemon"

[[interface]]
name        = "eth0"
alias       = ["main", "public"]

[[interface]]
name        = "lo"
alias       = ["local"]

[s3]
accessid	= "xxxxxxxxxxxxxxxxxxxxxxxxx"
accesskey	= "xxxxxxxxxxxxxxxxxxxxxxx"
endpoint	= "s3.amazonaws.com"
bucket		= "pcapdaemon"
folder		= "pcaps"
upload		= true
region		= "us-east-1"
acl			= "private"
encryption	= false

[sqs]
listen		= true
region		= "us-east-1"
accessid	= "xxxxxxxxxxxxxxxxxxxxxxxxx"
accesskey	= "xxxxxxxxxxxxxxxxxxxxxxx"
url			= "https://example.amazone.com/asdfasdf/myqueue"
waitseconds = 20
chunksize	= 10
"""

#: The least that starts.
LEAST = """
[general]
writelocal = true
localdir = "/tmp"
[redis]
listen = true
"""


class SettingsTestCase(unittest.TestCase):
    """What the tests of the configuration share."""

    def file(self, content: str | bytes) -> str:
        """The path of a new file with that content."""
        path = Path(self.mktemp())
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def issue(self) -> Certificate:
        """A new certificate and its key, in files."""
        folder = Path(self.mktemp())
        folder.mkdir()
        return Authority(folder).issue("server")

    def load(self, text: str, **overrides: Any) -> Settings:
        return load_settings(self.file(text), overrides)

    def problems(self, text: str, **overrides: Any) -> list[str]:
        """The problems of a configuration, each as it is printed."""
        error = self.assertRaises(SettingsError, self.load, text, **overrides)
        return [str(problem) for problem in error.problems]

    def only_problem(self, text: str, **overrides: Any) -> str:
        problems = self.problems(text, **overrides)
        self.assertEqual(1, len(problems), problems)
        return problems[0]


class OriginalTests(SettingsTestCase):
    """The configuration of the original keeps working."""

    def test_its_example_is_understood(self) -> None:
        """Each key of the example is where it belongs, and every source listens."""
        settings = self.load(ORIGINAL)
        self.assertTrue(settings.redis.listen and settings.kafka.listen and settings.sqs.listen)
        self.assertEqual(
            (50000, 500, 10),
            (
                settings.general.max_packets,
                settings.general.snap_length,
                settings.general.default_timeout_seconds,
            ),
        )
        self.assertEqual("/tmp", settings.general.local_dir)
        self.assertEqual("www.cloudshark.org", settings.cloudshark.host)
        self.assertIsNone(settings.cloudshark.timeout_seconds)
        self.assertEqual(Secret("fffffffffffffffffff"), settings.cloudshark.token)
        self.assertEqual("node.running.redis.net", settings.redis.host)
        self.assertEqual(Secret("password"), settings.redis.auth)
        self.assertEqual(("myhost.example.com:9092",), settings.kafka.server)
        assert settings.syslog is not None
        self.assertEqual((25, "pcapdaemon"), (settings.syslog.priority, settings.syslog.tag))
        self.assertEqual(
            (
                InterfaceAlias(name="eth0", alias=("main", "public")),
                InterfaceAlias(name="lo", alias=("local",)),
            ),
            settings.interfaces,
        )
        self.assertEqual("https://s3.amazonaws.com", settings.s3.endpoint)
        self.assertEqual(
            ("pcapdaemon", "pcaps", "us-east-1"),
            (
                settings.s3.bucket,
                settings.s3.folder,
                settings.s3.region,
            ),
        )
        self.assertEqual((20, 10), (settings.sqs.wait_seconds, settings.sqs.chunk_size))

    def test_options_alone(self) -> None:
        """Options are enough, with no file: one of Redis switches listening on, as it did."""
        settings = load_settings(None, {"redisnode": "r", "writelocal": True, "destdir": "/tmp"})
        self.assertTrue(settings.redis.listen)
        self.assertEqual("r", settings.redis.host)
        self.assertTrue(settings.general.write_local)

    def test_an_empty_text_is_none(self) -> None:
        """An empty text, where a key has no default, is as if the key were left out."""
        settings = self.load(
            LEAST
            + 'auth = ""\nauthfile = ""\n[s3]\naccessid = ""\naccesskey = ""\nendpoint = ""\nregion = ""\n'
        )
        self.assertIsNone(settings.redis.auth)
        self.assertIsNone(settings.s3.access_id)
        self.assertIsNone(settings.s3.access_key)
        self.assertIsNone(settings.s3.endpoint)

    def test_no_syslog(self) -> None:
        """Without its section there is no syslog; with it, even empty, there is."""
        self.assertIsNone(self.load(LEAST).syslog)
        self.assertIsNotNone(self.load(LEAST + "[syslog]\n").syslog)


class ProblemsTests(SettingsTestCase):
    """What is wrong is told, all of it at once, with its path, its value and the rule."""

    def test_all_at_once(self) -> None:
        """Problems of several sections, of unknown names, of options and between keys come together."""
        self.assertEqual(
            [
                "redsi: is not a known key; did you mean 'redis'?",
                "general.maxpacket: is not a known key; did you mean 'maxpackets'?",
                "--redisprt: is not a known option; did you mean 'redisport'?",
                "general.maxbytes = '9': must be a whole number of bytes, from 1 to 9223372036854775807",
                "general.snaplength = 300000: must be a whole number of bytes, from 1 to 262144",
                "--csport = 'https': must be a whole number from 1 to 65535",
                "interface[1].name = 'eth 0': must be an interface name of 1 to 15 characters, "
                "without spaces, slashes and colons",
                "redis.listen: at least one source must be enabled: redis.listen, kafka.listen, sqs.listen "
                "or http.listen",
                "general.writelocal: needs a folder: general.localdir, or --destdir",
                "redis.username: needs redis.auth or redis.authfile",
            ],
            self.problems(
                """
                [redsi]
                [general]
                maxpacket = 1
                maxbytes = "9"
                snaplength = 300000
                writelocal = true
                [redis]
                username = "u"
                [[interface]]
                name = "lo"
                [[interface]]
                name = "eth 0"
                """,
                csport="https",
                redisprt="1",
            ),
        )

    def test_numbers_are_strict(self) -> None:
        """A number is no boolean, no fraction and no text."""
        for value in ("true", "1.0", '"1"', "0", "-1", "[1]", "1979-05-27"):
            problem = self.only_problem(LEAST.replace("[redis]", f"maxpackets = {value}\n[redis]"))
            self.assertTrue(problem.startswith("general.maxpackets = "), problem)
            self.assertTrue(
                problem.endswith(": must be a whole number from 1 to 9223372036854775807"), problem
            )

    def test_no_source(self) -> None:
        """At least one source must be enabled."""
        self.assertIn("at least one source", self.only_problem(LEAST.replace("listen = true", "")))

    def test_no_destination(self) -> None:
        """At least one destination must be enabled; a folder alone doesn't switch writing on."""
        text = LEAST.replace("writelocal = true", "")
        self.assertIn("at least one destination", self.only_problem(text, destdir="/tmp"))

    def test_no_rule_about_a_wrong_value(self) -> None:
        """A value that is wrong in itself isn't also said to be missing."""
        self.assertEqual(
            "redis.listen = 'yes': must be true or false",
            self.only_problem(LEAST.replace("listen = true", 'listen = "yes"')),
        )

    def test_needs(self) -> None:
        """A key that needs another says so."""
        for more, expected in (
            (
                "[cloudshark]\nupload = true",
                "cloudshark.upload: needs cloudshark.token or cloudshark.tokenfile",
            ),
            (
                "[s3]\nupload = true\noverrides = []",
                "s3.upload: needs s3.bucket, or 'bucket' among s3.overrides",
            ),
            (
                "[s3]\naccessid = 'x'",
                "s3.accessid: and s3.accesskey (or accesskeyfile) must be given together",
            ),
            (
                "[s3]\naccesskey = 'x'",
                "s3.accessid: and s3.accesskey (or accesskeyfile) must be given together",
            ),
            ("username = 'x'", "redis.username: needs redis.auth"),
            (f"cafile = '{self.issue().certificate}'", "redis.cafile: means nothing without"),
            ("tls = true\ncafile = '/nowhere'", "redis.cafile = '/nowhere': must be a file that can be read"),
            ("[cloudshark]\nverify = '/nowhere'", "cloudshark.verify = '/nowhere': must be a file that"),
        ):
            problem = self.only_problem(f"{LEAST}\n{more}")
            self.assertTrue(problem.startswith(expected), problem)

    def test_limits_in_order(self) -> None:
        """A default must be no more than its maximum, and one capture's bytes no more than all captures'."""
        for keys, expected in (
            (
                "defaulttimeout = 9\nmaxtimeout = 8",
                "general.defaulttimeout = 9: must be at most general.maxtimeout",
            ),
            (
                "snaplength = 9\nmaxsnaplength = 8",
                "general.snaplength = 9: must be at most general.maxsnaplength",
            ),
            ("maxbytes = 9\nmaxmemory = 8", "general.maxbytes = 9: must be at most general.maxmemory"),
        ):
            problem = self.only_problem(LEAST.replace("[redis]", f"{keys}\n[redis]"))
            self.assertTrue(problem.startswith(expected), problem)

    def test_delivery(self) -> None:
        """Pauses in order, a spool that has room for any capture, and a folder of its own."""
        settings = self.load(LEAST + "[delivery]\ntimeout = 0")
        self.assertEqual((settings.delivery.timeout_seconds, settings.delivery.spool_dir), (None, None))
        for keys, expected in (
            ("firstdelay = 9\nmaxdelay = 8", "delivery.firstdelay = 9: must be at most delivery.maxdelay"),
            ("concurrency = 0", "delivery.concurrency = 0: must be a whole number from 1 to 64"),
            ("attempts = 0", "delivery.attempts = 0: must be a whole number"),
            (
                "spooldir = '/s'\nspoolsize = 100000000",
                "delivery.spoolsize = 100000000: must be more than general.maxbytes, which is 100000000",
            ),
            ("spooldir = '/tmp'", "delivery.spooldir = '/tmp': must be another folder than general.localdir"),
        ):
            problem = self.only_problem(f"{LEAST}[delivery]\n{keys}")
            self.assertTrue(problem.startswith(expected), problem)

    def test_defaults_give_way(self) -> None:
        """A default that would contradict a limit which was given goes with the limit."""
        settings = self.load(
            LEAST.replace("[redis]", "maxtimeout = 8\nmaxsnaplength = 100\nmaxbytes = 2000000000\n[redis]")
        )
        self.assertEqual(8, settings.general.default_timeout_seconds)
        self.assertEqual(100, settings.general.snap_length)
        self.assertEqual(2_000_000_000, settings.general.max_memory_bytes)

    def test_s3_endpoints(self) -> None:
        """An endpoint becomes a URL; one with a path, a query or credentials is refused, and not shown."""
        settings = self.load(
            LEAST + '[s3]\nendpoint = "http://minio:9000/"\nendpoints = ["a.example", "b:1"]'
        )
        self.assertEqual("http://minio:9000", settings.s3.endpoint)
        self.assertEqual(("https://a.example", "https://b:1"), settings.s3.endpoints)
        for endpoint in ("https://u:hunter2@a", "https://a/b", "https://a?b", "ftp://a", "a b", "a:99999"):
            for line in (f'endpoint = "{endpoint}"', f'endpoints = ["{endpoint}"]'):
                problem = self.only_problem(f"{LEAST}[s3]\n{line}")
                self.assertIn("must be HOST, HOST:PORT, or an http:// or https:// URL", problem)
                self.assertNotIn("hunter2", problem)

    def test_hosts(self) -> None:
        """A host name is not empty, and has no white space, slash or control character."""
        for host in ("", "a b", "a/b", "a\\n", "\\u0000", "redis://a"):
            problem = self.only_problem(f'{LEAST}host = "{host}"')
            self.assertIn("redis.host = ", problem)
        self.assertEqual("::1", self.load(f'{LEAST}host = "::1"').redis.host)

    def test_sections_of_the_wrong_shape(self) -> None:
        """A section that is no table, or interfaces that are no list of them, are problems."""
        self.assertIn("s3: must be one section, [s3]", self.only_problem(f"s3 = 'hunter2'\n{LEAST}"))
        self.assertIn("s3: must be one section, [s3]", self.only_problem(f"{LEAST}[[s3]]"))
        for text in (f"{LEAST}[interface]\nname = 'lo'", f"interface = 3\n{LEAST}"):
            self.assertEqual(
                "interface: must be sections in double brackets, [[interface]]", self.only_problem(text)
            )

    def test_interfaces(self) -> None:
        """An interface has a name, and stands there once; its aliases are a list."""
        self.assertEqual("interface[0].name: must be given", self.only_problem(LEAST + "[[interface]]"))
        self.assertEqual(
            "interface[1].name = 'lo': must not be given twice",
            self.only_problem(LEAST + "[[interface]]\nname='lo'\n[[interface]]\nname='lo'"),
        )
        self.assertIn("[0].alias = 'a'", self.only_problem(LEAST + "[[interface]]\nname='lo'\nalias='a'"))

    def test_interface_names(self) -> None:
        """What stands by for captures and what has aliases is named by one rule, the kernel's."""
        for name in ("any", "lo", "eth0", "eth0.100", "br-0123456789ab", "wlp2s0@x", "über0"):
            text = f'{LEAST}[capture]\nstandby = ["{name}"]\n[[interface]]\nname = "{name}"\n'
            self.assertEqual(name, self.load(text).interfaces[0].name)
        for name in ("", ".", "..", "a/b", "eth0:1", "eth 0", "e" * 16, "abcdefghijklmnopqrstuvwxyz"):
            text = f'{LEAST}[capture]\nstandby = ["{name}"]\n[[interface]]\nname = "{name}"\n'
            standby, alias = self.problems(text)
            self.assertTrue(standby.startswith("capture.standby = "), standby)
            self.assertEqual(
                f"interface[0].name = {name!r}: must be an interface name of 1 to 15 characters, "
                "without spaces, slashes and colons",
                alias,
            )

    def test_read_timeout(self) -> None:
        """The kernel hands over soon enough for limits of time to hold within 100 ms."""
        for value in (1, 40):
            settings = self.load(f"{LEAST}[capture]\nreadtimeout = {value}\n")
            self.assertEqual(value, settings.capture.read_timeout_ms)
        for value in (0, 41, 1000):
            self.assertEqual(
                f"capture.readtimeout = {value}: must be a whole number of milliseconds, from 1 to 40",
                self.only_problem(f"{LEAST}[capture]\nreadtimeout = {value}\n"),
            )

    def test_a_key_outside_its_section(self) -> None:
        """A key before the first section is told where it belongs."""
        self.assertEqual(
            "maxpackets: stands in no section; it belongs to [general]",
            self.only_problem(f"maxpackets = 1\n{LEAST}"),
        )

    def test_panic_is_no_key(self) -> None:
        """Only an option makes decode failures fatal, as it was."""
        self.assertIn(
            "general.panic: is not a known",
            self.only_problem(LEAST.replace("[redis]", "panic=true\n[redis]")),
        )
        self.assertTrue(self.load(LEAST, panic=True).general.panic)


class FileTests(SettingsTestCase):
    """The file itself."""

    def test_not_there(self) -> None:
        """A file that isn't there is a problem, and the options' own are told beside it."""
        error = self.assertRaises(SettingsError, load_settings, "/nowhere.toml", {"csport": "x"})
        self.assertEqual(
            [
                "/nowhere.toml: must be a file that can be read (No such file or directory)",
                "--csport = 'x': must be a whole number from 1 to 65535",
            ],
            [str(problem) for problem in error.problems],
        )

    def test_no_toml(self) -> None:
        """Of a file that is no TOML, the line and the column are told."""
        self.assertIn("is not valid TOML: ", self.only_problem("[general]\nmaxpackets 3"))
        self.assertIn("(at line 2, column 12)", self.only_problem("[general]\nmaxpackets 3"))
        self.assertIn("is not valid TOML", self.only_problem("a = " + "[" * 100_000))

    def test_no_text(self) -> None:
        """Of a file that is no UTF-8, that is told; and of a folder, that it is one."""
        error = self.assertRaises(SettingsError, load_settings, self.file(b"\xff"))
        self.assertIn("UTF-8", str(error))
        self.assertIn("Is a directory", str(self.assertRaises(SettingsError, load_settings, "/")))


class OptionsTests(SettingsTestCase):
    """An option overrides its key."""

    def test_each_overrides_its_key(self) -> None:
        """Whatever the file says, an option that is given decides."""
        given = {"text": "http", "number": "77", "flag": True}
        for option in OPTIONS.values():
            settings = self.load(LEAST + "[cloudshark]\ntoken = 't'\n", **{option.name: given[option.kind]})
            section = getattr(settings, option.section)
            fields = {field.encode_name: field.name for field in msgspec.structs.fields(section)}
            value = getattr(section, fields[option.key])
            expected = {"text": "http", "number": 77, "flag": True}[option.kind]
            if option.name == "destdir":
                expected = os.path.abspath("http")
            self.assertEqual(Secret("http") if isinstance(value, Secret) else expected, value, option.name)

    def test_a_wrong_value_in_the_file_does_not_matter(self) -> None:
        """A key that an option overrides isn't judged."""
        text = LEAST.replace("[redis]", "maxpackets = 'x'\n[redis]")
        self.assertEqual(3, self.load(text, maxpackets="3").general.max_packets)

    def test_a_token_in_place_of_a_file(self) -> None:
        """A token on the command line is taken in place of the file that the configuration names."""
        settings = self.load(LEAST + "[cloudshark]\ntokenfile = '/nowhere'", cstoken="t")
        self.assertEqual(Secret("t"), settings.cloudshark.token)

    def test_redis_stays_off(self) -> None:
        """An option of Redis doesn't switch on what the file switches off."""
        text = "[general]\nwritelocal=true\nlocaldir='/'\n[redis]\nlisten=false\n[http]\nlisten='unix:/s'"
        self.assertFalse(self.load(text, redisport="1").redis.listen)

    def test_cloudshark_stays_off(self) -> None:
        """No option of CloudShark but --upload switches uploading on."""
        self.assertFalse(self.load(LEAST, cshost="h", cstoken="t").cloudshark.upload)


class PathsTests(SettingsTestCase):
    """Relative paths are taken from the folder in which the service is started."""

    def test_absolute(self) -> None:
        """Each is made absolute when it is read, as a daemon leaves that folder."""
        ours = self.issue()
        certificates, key = str(ours.certificate), str(ours.key)
        token = self.file("hunter2\n")
        relative = {path: os.path.relpath(path) for path in (certificates, key, token)}
        settings = self.load(
            f"[general]\nwritelocal = true\nlocaldir = 'a'\n[delivery]\nspooldir = 'b/../c'\n"
            f"[cloudshark]\nverify = '{relative[certificates]}'\n"
            f"[redis]\ntls = true\ncafile = '{relative[certificates]}'\n"
            "[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'OAUTHBEARER'\n"
            f"ssl_cafile = '{relative[certificates]}'\nssl_certfile = '{relative[certificates]}'\n"
            f"ssl_keyfile = '{relative[key]}'\nsasl_oauth_tokenfile = '{relative[token]}'\n"
            "[http]\nlisten = 'unix:http.sock'\n"
        )
        kafka = settings.kafka
        self.assertEqual(os.path.abspath("a"), settings.general.local_dir)
        self.assertEqual(os.path.abspath("c"), settings.delivery.spool_dir)
        self.assertEqual(
            os.path.abspath("d"), self.load("", redisnode="x", destdir="d", writelocal=True).general.local_dir
        )
        self.assertEqual(
            [os.path.abspath(certificates)] * 2, [settings.cloudshark.verify, settings.redis.ca_file]
        )
        self.assertEqual([os.path.abspath(certificates)] * 2, [kafka.ssl_cafile, kafka.ssl_certfile])
        self.assertEqual(os.path.abspath(key), kafka.ssl_keyfile)
        self.assertEqual(os.path.abspath(token), kafka.sasl_oauth_token_file)

    def test_files_of_an_endpoint(self) -> None:
        """The files of TLS are made so, too."""
        text = "ssl:1:k.pem:certKey=/c.pem:extraCertChain=x.pem:dhParameters=d.pem:interface=\\:\\:1"
        self.assertEqual(
            {
                "port": "1",
                "privateKey": os.path.abspath("k.pem"),
                "certKey": "/c.pem",
                "extraCertChain": os.path.abspath("x.pem"),
                "dhParameters": os.path.abspath("d.pem"),
                "interface": "::1",
            },
            read_listener(absolute_listener(text, os.path.abspath)).parameters,
        )

    def test_unix_socket(self) -> None:
        """The address of a unix socket is made so, whatever is in it; the rest stays."""
        for text, more in (
            ("unix:a.sock", {}),
            ("unix:address=a.sock", {}),
            ("unix:a.sock:mode=600", {"mode": "600"}),
            (r"unix:a\:b\=c\\d:lockfile=0", {"lockfile": "0"}),
        ):
            was, listen = read_listener(text), absolute_listener(text, os.path.abspath)
            address = os.path.abspath(was.parameters["address"])
            self.assertEqual({"address": address, **more}, read_listener(listen).parameters)
            self.assertTrue(read_listener(listen).local)
        for text in ("unix:/run/a.sock:mode=600", "tcp:1:interface=127.0.0.1", r"tcp6:1:interface=\:\:1"):
            self.assertEqual(text, absolute_listener(text, os.path.abspath))


class SecretsTests(SettingsTestCase):
    """A secret is known, and never seen."""

    PLACES = (
        ("cloudshark", "token"),
        ("redis", "auth"),
        ("kafka", "sasl_plain_password"),
        ("s3", "accesskey"),
        ("sqs", "accesskey"),
    )

    def _text(self, section: str, lines: str) -> str:
        more = "accessid = 'id'\n" if "accesskey" in lines else ""
        if section == "kafka":
            more = "security_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_plain_username = 'u'\n"
        return f"{LEAST}{lines}" if section == "redis" else f"{LEAST}[{section}]\n{more}{lines}"

    def _found(self, settings: Settings, section: str) -> Any:
        return getattr(getattr(settings, section), SECRETS[section].field)

    def test_given_or_in_a_file(self) -> None:
        """Each secret can be given by itself or in a file, of which the white space around it is dropped."""
        path = self.file("  hunter2\n")
        for section, key in self.PLACES:
            for line in (f"{key} = 'hunter2'", f"{key}file = '{path}'"):
                found = self._found(self.load(self._text(section, line)), section)
                self.assertEqual("hunter2", found.reveal())

    def test_never_both(self) -> None:
        """Giving a secret and its file is a problem, which shows no secret."""
        path = self.file("hunter2")
        for section, key in self.PLACES:
            problem = self.only_problem(self._text(section, f"{key} = 'hunter3'\n{key}file = '{path}'"))
            self.assertIn(f"{section}.{key}file = '{path}': must not be given beside {key}", problem)
            self.assertNotIn("hunter", problem)

    def test_both_wrong(self) -> None:
        """What is wrong with a secret and what is wrong with its file are told together."""
        for section, key in self.PLACES:
            for given in ("5", "['hunter2']", '"hunter2\\n"'):
                for path, rule in (
                    ("6", "must be the path of a file"),
                    ("'/nope'", f"must not be given beside {key}: either is enough"),
                ):
                    text = self._text(section, f"{key} = {given}\n{key}file = {path}")
                    self.assertEqual(
                        [
                            f"{section}.{key}: must be one line of text",
                            f"{section}.{key}file = {path}: {rule}",
                        ],
                        self.problems(text),
                    )

    def test_files_that_hold_none(self) -> None:
        """A file that is empty, has several lines, or can't be read is a problem with its path only."""
        for path, rule in (
            (self.file(" \n"), "it is empty"),
            (self.file("hunter2\nhunter3\n"), "it has more"),
            (self.file(b"hunter2\xff"), "UTF-8"),
            ("/nowhere", "No such file"),
        ):
            problem = self.only_problem(f"{LEAST}authfile = '{path}'")
            self.assertIn(f"redis.authfile = '{path}': must be", problem)
            self.assertIn(rule, problem)
            self.assertNotIn("hunter", problem)

    def test_wrong_secrets_are_not_shown(self) -> None:
        """A secret of the wrong type, or of several lines, is a problem that doesn't show it."""
        for section, key in self.PLACES:
            for value in ("['hunter2']", "{a = 'hunter2'}", '"hunter2\\n"'):
                problem = self.only_problem(self._text(section, f"{key} = {value}"))
                self.assertEqual(f"{section}.{key}: must be one line of text", problem)

    def test_passwords_in_addresses(self) -> None:
        """A password in an address, where none belongs, isn't shown either."""
        for line in ("host", "[cloudshark]\nhost", "[sqs]\nurl", "[s3]\nendpoint"):
            self.assertNotIn("hunter2", self.only_problem(f"{LEAST}{line} = 'https://u:hunter2@h/x'"))

    def test_never_seen(self) -> None:
        """A secret is in no repr, str or format of itself and of the settings, and isn't pickled."""
        settings = self.load(LEAST + "auth = 'hunter2'")
        secret = settings.redis.auth
        assert secret is not None
        for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>9}", repr(settings), str(settings)):
            self.assertNotIn("hunter2", text)
        self.assertRaises(TypeError, pickle.dumps, secret)

    def test_equal(self) -> None:
        """Secrets are equal where their values are, and equal nothing else."""
        self.assertEqual(Secret("é"), Secret("é"))
        self.assertEqual(hash(Secret("a")), hash(Secret("a")))
        self.assertNotEqual(Secret("a"), Secret("b"))
        self.assertNotEqual(Secret("a"), "a")


class ListenTests(SettingsTestCase):
    """Where HTTP listens decides whether a token is needed."""

    HTTP = "[general]\nwritelocal = true\nlocaldir = '/tmp'\n[http]\n"

    def test_local(self) -> None:
        """On a loopback address, or a unix socket, no token is needed."""
        for listen in (
            "tcp:8480:interface=127.0.0.1",
            "tcp:8480:127.0.0.1",
            "tcp:port=8480:interface=127.8.9.1",
            "tcp:0:interface=localhost",
            r"tcp6:8480:interface=\:\:1",
            "unix:/run/pcapsvc.sock:mode=660",
            r"unix:address=/run/a\:b",
        ):
            self.assertEqual(listen, self.load(f"{self.HTTP}listen = '{listen}'").http.listen)

    def test_not_local(self) -> None:
        """Anywhere else one is; with no interface named, it is every address."""
        path = self.file("hunter2\n")
        for listen in (
            "tcp:8480",
            "tcp:8480:interface=",
            "tcp:8480:interface=0.0.0.0",
            "tcp:8480:interface=192.0.2.1",
            "tcp:8480:interface=127.0.0.1.example.com",
            "tcp6:8480",
            r"tcp6:8480:interface=\:\:",
        ):
            text = f"{self.HTTP}listen = '{listen}'\n"
            self.assertIn("needs http.tokenfile", self.only_problem(text))
            self.assertEqual(Secret("hunter2"), self.load(f"{text}tokenfile = '{path}'").http.token)

    def test_local_by_its_kind(self) -> None:
        """TLS changes nothing in this; of a socket that systemd opened, only its kind is known."""
        for listen, local in (
            ("ssl:8443:interface=127.0.0.1", True),
            ("ssl:8443", False),
            ("systemd:domain=UNIX:index=0", True),
            ("systemd:domain=INET:name=http", False),
        ):
            self.assertEqual(local, read_listener(listen).local, listen)

    def test_no_endpoints(self) -> None:
        """What is no endpoint string is a problem, with the rule that it breaks."""
        for listen, rule in (
            ("8480", "must be an endpoint that starts with one of tcp"),
            ("udp:1", "must be an endpoint that starts with one of tcp"),
            ("tcp=tcp:1", "must be an endpoint that starts with one of tcp"),
            ("tcp", "must give 'port'"),
            ("tcp:", "must give 'port'"),
            ("tcp:65536", "a port from 0 to 65535"),
            ("tcp:-1", "a port from 0 to 65535"),
            ("tcp:http", "a port from 0 to 65535"),
            ("tcp:²", "a port from 0 to 65535"),
            ("tcp:1:iface=127.0.0.1", "the parameter 'iface'"),
            ("tcp:1:port=2", "gives 'port' twice"),
            ("tcp:1:::2", "more parameters"),
            ("tcp:1:interface=127.0.0.1:backlog=x", "must give 'backlog'"),
            ("tcp6:8480:interface=::1", "gives 'interface' twice"),
            ("tcp6:8480:127.0.0.1", "must give 'backlog' as a whole number"),
            ("unix:/s:mode=999", "an octal number"),
            ("ssl:1:sslmethod=foo", "must give 'sslmethod' as one of TLS_METHOD, "),
            ("systemd:domain=UNIX", "exactly one of 'index' and 'name'"),
            ("tcp:1\\", "must not end with a backslash"),
        ):
            problem = self.only_problem(f"{self.HTTP}listen = '{listen}'")
            self.assertIn("http.listen = ", problem)
            self.assertIn(rule, problem)

    def test_as_twisted_reads_it(self) -> None:
        """A string is taken apart as Twisted does it."""
        from twisted.internet.endpoints import _parse  # type: ignore[attr-defined]

        for text, names in (
            (r"tcp:80:interface=\:\:1", ("port",)),
            ("tcp:80:interface=a=b", ("port",)),
            (r"tcp:80:a\=b\\c", ("port", "interface")),
            ("tcp:80:interface=", ("port",)),
            (r"unix:/run/a\:b:mode=600", ("address",)),
        ):
            positional, named = _parse(text)
            self.assertEqual(
                {**dict(zip(names, positional[1:], strict=True)), **named}, read_listener(text).parameters
            )


class DocumentsTests(SettingsTestCase):
    """What is written about the configuration is true."""

    def _rows(self) -> dict[str, dict[str, list[str]]]:
        """The cells of each row of the tables of docs/configuration.md, by section and first cell."""
        rows: dict[str, dict[str, list[str]]] = {}
        section = ""
        for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
            if line.startswith("## "):
                section = line.removeprefix("## ").strip("[]").lower()
            elif line.startswith("| `"):
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                rows.setdefault(section, {})[cells[0].strip("`")] = cells
        return rows

    def test_every_key_and_its_default(self) -> None:
        """The tables name each key of each section, in order, with its default."""
        rows = self._rows()
        special = {
            ("general", "nodename"): "the host name",
            ("cloudshark", "timeout"): "`0`",
            ("interface", "name"): "required",
        }
        for section in (*SECTIONS, "interface"):
            self.assertEqual(keys_of(section), tuple(rows[section]))
            structure = InterfaceAlias if section == "interface" else SECTIONS[section]
            fields = {field.encode_name: field for field in msgspec.structs.fields(structure)}
            for key, cells in rows[section].items():
                if (section, key) in special:
                    self.assertEqual(special[section, key], cells[3])
                elif key not in fields or fields[key].default is None:
                    self.assertEqual("none", cells[3], f"{section}.{key}")
                else:
                    default = fields[key].default
                    written = tomllib.loads(f"value = {cells[3].strip('`')}")["value"]
                    if isinstance(written, list):
                        written = type(default)(written)
                    self.assertEqual((default, type(default)), (written, type(written)), f"{section}.{key}")

    def test_every_option(self) -> None:
        """The table of options names each, with the key that it overrides."""
        rows = self._rows()["options"]
        self.assertEqual({"--config", *(f"--{name}" for name in OPTIONS)}, set(rows))
        for name, option in OPTIONS.items():
            if option.key in keys_of(option.section):
                self.assertEqual(f"`{option.path}`", rows[f"--{name}"][1])

    def test_the_sources(self) -> None:
        """All that can be listened to is told as such: by the rule, and by its words in the documentation."""
        sources = {f"{section}.listen" for section in SECTIONS if "listen" in keys_of(section)}
        rule = self.only_problem("[general]\nwritelocal = true\nlocaldir = '/tmp'\n").partition("enabled:")[2]
        [words] = re.findall(
            r"(?m)^- At least one source: (.*)$", (ROOT / "docs/configuration.md").read_text()
        )
        for text in (rule, words):
            self.assertEqual(sources, set(re.findall(r"[a-z0-9]+\.listen", text)))

    def test_the_examples_load(self) -> None:
        """Both examples load, and the quick start listens on this host alone."""
        quick = load_settings(str(ROOT / "examples" / "quickstart.toml"))
        self.assertEqual("tcp:8480:interface=127.0.0.1", quick.http.listen)
        self.assertTrue(quick.general.write_local)
        self.assertFalse(quick.redis.listen)
        load_settings(str(ROOT / "examples" / "pcapsvc.toml"))

    def test_the_quick_start_with_redis(self) -> None:
        """The quick start still loads when Redis is switched on as its comment says."""
        text = (ROOT / "examples" / "quickstart.toml").read_text()
        settings = self.load(re.sub(r"(?m)^#(?=\S)", "", text))
        self.assertTrue(settings.redis.listen)

    def test_the_full_example_has_every_key(self) -> None:
        """Each key stands in the full example, if only behind a hash sign."""
        text = (ROOT / "examples" / "pcapsvc.toml").read_text()
        for section in (*SECTIONS, "interface"):
            header = "[[interface]]" if section == "interface" else f"[{section}]"
            part = re.split(r"(?m)^\[", text.partition(f"\n{header}\n")[2])[0]
            found = re.findall(r"(?m)^#?([a-z_]+)[ ]*= ", part)
            self.assertEqual(sorted(keys_of(section)), sorted(found), section)
