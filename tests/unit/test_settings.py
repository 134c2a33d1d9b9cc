"""From the configuration file and the options to settings, or to problems."""

from __future__ import annotations

import os
import socket

import msgspec

from pcapsvc.components import COMPONENTS
from pcapsvc.core.errors import SettingsError, shown
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.destinations.cloudshark.settings import CloudSharkSettings
from pcapsvc.destinations.local.settings import LocalSettings
from pcapsvc.destinations.s3.settings import S3Settings
from pcapsvc.host.settings import SyslogSettings
from pcapsvc.settings import InterfaceSettings, Secret, load_settings
from pcapsvc.settings.general import GeneralSettings
from pcapsvc.settings.section import DestinationSection
from pcapsvc.sources.kafka.settings import KafkaSettings
from pcapsvc.sources.redis.settings import RedisSettings
from pcapsvc.sources.sqs.settings import SqsSettings
from tests.unit.settings_case import LEAST, SettingsTestCase

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


class OriginalTests(SettingsTestCase):
    """The configuration of the original keeps working."""

    def test_its_example_is_understood(self) -> None:
        """Each key of the example is where it belongs, and every source listens."""
        settings = self.load(ORIGINAL)
        for source in (RedisSettings, KafkaSettings, SqsSettings):
            self.assertTrue(settings.section(source).listen)
        self.assertEqual(
            (50000, 500, 10),
            (
                settings.general.max_packets,
                settings.general.snap_length,
                settings.general.default_timeout_seconds,
            ),
        )
        self.assertEqual("/tmp", settings.section(LocalSettings).local_dir)
        self.assertEqual("www.cloudshark.org", settings.section(CloudSharkSettings).host)
        self.assertIsNone(settings.section(CloudSharkSettings).timeout_seconds)
        self.assertEqual(Secret("fffffffffffffffffff"), settings.section(CloudSharkSettings).token)
        self.assertEqual("node.running.redis.net", settings.section(RedisSettings).host)
        self.assertEqual(Secret("password"), settings.section(RedisSettings).auth)
        self.assertEqual(("myhost.example.com:9092",), settings.section(KafkaSettings).server)
        syslog = settings.section(SyslogSettings)
        self.assertEqual((25, "pcapdaemon"), (syslog.priority, syslog.tag))
        self.assertEqual(
            (
                InterfaceSettings(name="eth0", alias=("main", "public")),
                InterfaceSettings(name="lo", alias=("local",)),
            ),
            settings.interfaces,
        )
        self.assertEqual("https://s3.amazonaws.com", settings.section(S3Settings).endpoint)
        self.assertEqual(
            ("pcapdaemon", "pcaps", "us-east-1"),
            (
                settings.section(S3Settings).bucket,
                settings.section(S3Settings).folder,
                settings.section(S3Settings).region,
            ),
        )
        self.assertEqual(
            (20, 10), (settings.section(SqsSettings).wait_seconds, settings.section(SqsSettings).chunk_size)
        )

    def test_options_alone(self) -> None:
        """Options work without a file. An option of Redis enables listening, as in the original."""
        settings = load_settings(None, COMPONENTS, {"redisnode": "r", "writelocal": True, "destdir": "/tmp"})
        self.assertTrue(settings.section(RedisSettings).listen)
        self.assertEqual("r", settings.section(RedisSettings).host)
        self.assertTrue(settings.section(LocalSettings).write_local)

    def test_an_empty_text_is_none(self) -> None:
        """An empty text is the same as leaving the key out, if the key has no default."""
        settings = self.load(
            LEAST
            + 'auth = ""\nauthfile = ""\n[s3]\naccessid = ""\naccesskey = ""\nendpoint = ""\nregion = ""\n'
        )
        self.assertIsNone(settings.section(RedisSettings).auth)
        self.assertIsNone(settings.section(S3Settings).access_id)
        self.assertIsNone(settings.section(S3Settings).access_key)
        self.assertIsNone(settings.section(S3Settings).endpoint)

    def test_no_syslog(self) -> None:
        """Without its section there is no syslog; with it, even empty, there is."""
        self.assertIsNone(self.load(LEAST).find(SyslogSettings))
        self.assertIsNotNone(self.load(LEAST + "[syslog]\n").find(SyslogSettings))


class ProblemsTests(SettingsTestCase):
    """All problems are reported at once, each with its path, its value and the rule."""

    def test_options_that_are_not_utf8(self) -> None:
        """What Python makes of bytes that aren't UTF-8 is no text: it could never be sent."""
        given = {"redischannel": "\udcff", "cshost": "\udcffa", "cstoken": "\udcff-token"}
        self.assertEqual(
            [problem.partition(" ")[0].rstrip(":") for problem in self.problems(LEAST, **given)],
            ["--cshost", "--cstoken", "--redischannel"],
        )
        # A path may be anything.
        settings = self.load(LEAST, destdir="/tmp/\udcff")
        self.assertEqual(settings.section(LocalSettings).local_dir, "/tmp/\udcff")

    def test_name_of_the_host(self) -> None:
        """The name of the host is held to the rule for the name of a node."""
        for name in ("", "a b", "a/b", "\udcff", "a\n\x1b[31m", "(none)\0"):
            self.patch(socket, "gethostname", lambda name=name: name)
            problem = self.only_problem(LEAST)
            self.assertTrue(problem.startswith("general.nodename = "), problem)
            self.assertTrue(
                problem.endswith(": must be set, as the name of this host can't be used"), problem
            )
            self.assertEqual(
                self.section(GeneralSettings, LEAST.replace("[redis]", 'nodename = "n"\n[redis]')).node_name,
                "n",
            )

    def test_no_path(self) -> None:
        """A path that is empty is shown, too."""
        error = self.assertRaises(SettingsError, load_settings, "", COMPONENTS)
        self.assertEqual(
            str(error.problems[0]), '"": must be a file that can be read (No such file or directory)'
        )

    def test_all_at_once(self) -> None:
        """Problems with sections, unknown names, options and combinations of keys are reported together."""
        self.assertEqual(
            [
                "redsi: is not a known key; did you mean 'redis'?",
                "general.maxpacket: is not a known key; did you mean 'maxpackets'?",
                "--redisprt: is not a known option; did you mean 'redisport'?",
                'general.maxbytes = "9": must be a whole number of bytes, from 1 to 9223372036854775807',
                "general.snaplength = 300000: must be a whole number of bytes, from 1 to 262144",
                '--csport = "https": must be a whole number from 1 to 65535',
                'interface[1].name = "eth 0": must be an interface name of 1 to 127 characters, '
                "without spaces, slashes or colons",
                "redis.listen: at least one source must be enabled: redis.listen, kafka.listen, sqs.listen "
                "or http.listen",
                "general.writelocal: needs a directory: general.localdir or --destdir",
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
        """A boolean, a fraction or a text is not accepted as a number."""
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
        """At least one destination must be enabled; a directory alone doesn't enable writing."""
        text = LEAST.replace("writelocal = true", "")
        self.assertIn("at least one destination", self.only_problem(text, destdir="/tmp"))

    def test_no_rule_about_a_wrong_value(self) -> None:
        """A value that is wrong in itself isn't reported as missing too."""
        self.assertEqual(
            'redis.listen = "yes": must be true or false',
            self.only_problem(LEAST.replace("listen = true", 'listen = "yes"')),
        )

    def test_needs(self) -> None:
        """A key that needs another is reported."""
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
                "s3.accessid: must be given together with s3.accesskey (or accesskeyfile)",
            ),
            (
                "[s3]\naccesskey = 'x'",
                "s3.accessid: must be given together with s3.accesskey (or accesskeyfile)",
            ),
            ("username = 'x'", "redis.username: needs redis.auth"),
            (f"cafile = '{self.issue().certificate}'", "redis.cafile: has no effect without"),
            ('tls = true\ncafile = "/nowhere"', 'redis.cafile = "/nowhere": must be a file that can be read'),
            ('[cloudshark]\ncompress = "zstd"', 'cloudshark.compress = "zstd": must be one of gzip, none'),
            ('[s3]\ncompress = "xz"', 's3.compress = "xz": must be one of gzip, zstd, none'),
            ('[cloudshark]\nverify = "/nowhere"', 'cloudshark.verify = "/nowhere": must be a file that'),
        ):
            problem = self.only_problem(f"{LEAST}\n{more}")
            self.assertTrue(problem.startswith(expected), problem)

    def test_compressions(self) -> None:
        """Each destination has its compression; CloudShark has no zstd."""
        text = LEAST.replace("writelocal", "localcompress = 'gzip'\nwritelocal")
        settings = self.load(f"{text}\n[s3]\ncompress = 'zstd'\n[cloudshark]\ncompress = 'gzip'")
        sections = [each for each in settings.sections if isinstance(each, DestinationSection)]
        found = {each.name: each.compression().usual for each in sections}
        for name, expected in (("local", "gzip"), ("s3", "zstd"), ("cloudshark", "gzip")):
            self.assertEqual(found[name], expected)
        problem = self.only_problem(LEAST.replace("writelocal", "localcompress = true\nwritelocal"))
        self.assertEqual(problem, "general.localcompress = true: must be one of gzip, zstd, none")

    def test_limits_in_order(self) -> None:
        """A default is at most its maximum, and the size of one capture at most that of all captures."""
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
        """Delays are in order, and the spool has room for any capture, and a directory of its own."""
        settings = self.load(LEAST + "[delivery]\ntimeout = 0")
        delivery = settings.section(DeliverySettings)
        self.assertEqual((delivery.timeout_seconds, delivery.spool_dir), (None, None))
        for keys, expected in (
            ("firstdelay = 9\nmaxdelay = 8", "delivery.firstdelay = 9: must be at most delivery.maxdelay"),
            ("concurrency = 0", "delivery.concurrency = 0: must be a whole number from 1 to 64"),
            ("attempts = 0", "delivery.attempts = 0: must be a whole number"),
            (
                "spooldir = '/s'\nspoolsize = 100000000",
                "delivery.spoolsize = 100000000: must be more than general.maxbytes, which is 100000000",
            ),
            (
                "spooldir = '/tmp'",
                'delivery.spooldir = "/tmp": must not be the same directory as general.localdir',
            ),
        ):
            problem = self.only_problem(f"{LEAST}[delivery]\n{keys}")
            self.assertTrue(problem.startswith(expected), problem)

    def test_defaults_give_way(self) -> None:
        """A default that would contradict a configured limit is adapted to it."""
        settings = self.load(
            LEAST.replace("[redis]", "maxtimeout = 8\nmaxsnaplength = 100\nmaxbytes = 2000000000\n[redis]")
        )
        self.assertEqual(8, settings.general.default_timeout_seconds)
        self.assertEqual(100, settings.general.snap_length)
        self.assertEqual(2_000_000_000, settings.general.max_memory_bytes)

    def test_s3_endpoints(self) -> None:
        """An endpoint becomes a URL. One with a path, a query or credentials is rejected, and not shown."""
        settings = self.load(
            LEAST + '[s3]\nendpoint = "http://minio:9000/"\nendpoints = ["a.example", "b:1"]'
        )
        self.assertEqual("http://minio:9000", settings.section(S3Settings).endpoint)
        self.assertEqual(("https://a.example", "https://b:1"), settings.section(S3Settings).endpoints)
        for endpoint in ("https://u:hunter2@a", "https://a/b", "https://a?b", "ftp://a", "a b", "a:99999"):
            for line in (f'endpoint = "{endpoint}"', f'endpoints = ["{endpoint}"]'):
                problem = self.only_problem(f"{LEAST}[s3]\n{line}")
                self.assertIn("must be HOST, HOST:PORT, or an http:// or https:// URL", problem)
                self.assertNotIn("hunter2", problem)

    def test_hosts(self) -> None:
        """A host name is not empty, and has no white space, slashes or control characters."""
        for host in ("", "a b", "a/b", "a\\n", "\\u0000", "redis://a"):
            problem = self.only_problem(f'{LEAST}host = "{host}"')
            self.assertIn("redis.host = ", problem)
        self.assertEqual("::1", self.section(RedisSettings, f'{LEAST}host = "::1"').host)

    def test_sections_of_the_wrong_shape(self) -> None:
        """A section that isn't a table, and interfaces that aren't a list of tables, are problems."""
        self.assertIn("s3: must be a section, [s3]", self.only_problem(f"s3 = 'hunter2'\n{LEAST}"))
        self.assertIn("s3: must be a section, [s3]", self.only_problem(f"{LEAST}[[s3]]"))
        for text in (f"{LEAST}[interface]\nname = 'lo'", f"interface = 3\n{LEAST}"):
            self.assertEqual("interface: must be a list of sections, [[interface]]", self.only_problem(text))

    def test_interfaces(self) -> None:
        """An interface has a name, which is unique, and a list of aliases."""
        self.assertEqual("interface[0].name: must be given", self.only_problem(LEAST + "[[interface]]"))
        misspelt = self.only_problem(LEAST + "[[interface]]\nnmae='lo'")
        self.assertEqual("interface[0].nmae: is not a known key; did you mean 'name'?", misspelt)
        self.assertEqual(
            'interface[1].name = "lo": must not be given twice',
            self.only_problem(LEAST + "[[interface]]\nname='lo'\n[[interface]]\nname='lo'"),
        )
        self.assertIn('[0].alias = "a"', self.only_problem(LEAST + "[[interface]]\nname='lo'\nalias='a'"))

    def test_interface_names(self) -> None:
        """Interfaces on standby and interfaces with aliases are named by the same rule, the kernel's."""
        for name in ("any", "lo", "eth0", "eth0.100", "br-0123456789ab", "wlp2s0@x", "über0", "e" * 127):
            text = f'{LEAST}[capture]\nstandby = ["{name}"]\n[[interface]]\nname = "{name}"\n'
            self.assertEqual(name, self.load(text).interfaces[0].name)
        for name in ("", ".", "..", "a/b", "eth0:1", "eth 0", "e" * 128):
            text = f'{LEAST}[capture]\nstandby = ["{name}"]\n[[interface]]\nname = "{name}"\n'
            standby, alias = self.problems(text)
            self.assertTrue(standby.startswith("capture.standby = "), standby)
            self.assertEqual(
                f"interface[0].name = {shown(name)}: must be an interface name of 1 to 127 characters, "
                "without spaces, slashes or colons",
                alias,
            )

    def test_read_timeout(self) -> None:
        """The read timeout is short enough for time limits to hold within 100 ms."""
        for value in (1, 40):
            settings = self.load(f"{LEAST}[capture]\nreadtimeout = {value}\n")
            self.assertEqual(value, settings.capture.read_timeout_ms)
        for value in (0, 41, 1000):
            self.assertEqual(
                f"capture.readtimeout = {value}: must be a whole number of milliseconds, from 1 to 40",
                self.only_problem(f"{LEAST}[capture]\nreadtimeout = {value}\n"),
            )

    def test_a_key_outside_its_section(self) -> None:
        """For a key before the first section, the right section is named."""
        self.assertEqual(
            "maxpackets: is outside any section; it belongs in [general]",
            self.only_problem(f"maxpackets = 1\n{LEAST}"),
        )

    def test_panic_is_no_key(self) -> None:
        """Only an option makes decode failures fatal, as in the original."""
        self.assertIn(
            "general.panic: is not a known",
            self.only_problem(LEAST.replace("[redis]", "panic=true\n[redis]")),
        )
        self.assertTrue(self.load(LEAST, panic=True).general.panic)


class FileTests(SettingsTestCase):
    """The file itself."""

    def test_not_there(self) -> None:
        """A missing file is a problem, and is reported together with those of the options."""
        error = self.assertRaises(SettingsError, load_settings, "/nowhere.toml", COMPONENTS, {"csport": "x"})
        self.assertEqual(
            [
                "/nowhere.toml: must be a file that can be read (No such file or directory)",
                '--csport = "x": must be a whole number from 1 to 65535',
            ],
            [str(problem) for problem in error.problems],
        )

    def test_no_toml(self) -> None:
        """For invalid TOML, the line and the column are reported."""
        self.assertIn("is not valid TOML: ", self.only_problem("[general]\nmaxpackets 3"))
        self.assertIn("(at line 2, column 12)", self.only_problem("[general]\nmaxpackets 3"))
        self.assertIn("is not valid TOML", self.only_problem("a = " + "[" * 100_000))
        self.assertEqual(
            self.only_problem("[general]\nmaxpackets = " + "9" * 6000).partition(": ")[2],
            "is not valid TOML: a number has too many digits",
        )

    def test_long_hexadecimal(self) -> None:
        """A number that is too long for decimal digits is shown as it was given, shortened."""
        path = self.file("[general]\nmaxpackets = 0x" + "f" * 6000)
        problem = str(self.assertRaises(SettingsError, load_settings, path, COMPONENTS).problems[0])
        self.assertTrue(problem.startswith("general.maxpackets = 0xffff"), problem)
        self.assertIn("…: must be a whole number", problem)

    def test_no_text(self) -> None:
        """A file that isn't UTF-8, and a directory, are reported as such."""
        error = self.assertRaises(SettingsError, load_settings, self.file(b"\xff"), COMPONENTS)
        self.assertIn("UTF-8", str(error))
        self.assertIn("Is a directory", str(self.assertRaises(SettingsError, load_settings, "/", COMPONENTS)))


class OptionsTests(SettingsTestCase):
    """An option overrides its key."""

    def test_each_overrides_its_key(self) -> None:
        """An option takes precedence over the file."""
        given = {"text": "http", "number": "77", "flag": True}
        for option, kind in COMPONENTS.options().values():
            settings = self.load(LEAST + "[cloudshark]\ntoken = 't'\n", **{option.name: given[option.kind]})
            section = settings.section(kind)
            fields = {field.encode_name: field.name for field in msgspec.structs.fields(section)}
            value = getattr(section, fields[option.key])
            expected = {"text": "http", "number": 77, "flag": True}[option.kind]
            if option.name == "destdir":
                expected = os.path.abspath("http")
            self.assertEqual(Secret("http") if isinstance(value, Secret) else expected, value, option.name)

    def test_a_wrong_value_in_the_file_does_not_matter(self) -> None:
        """A key that an option overrides isn't validated."""
        text = LEAST.replace("[redis]", "maxpackets = 'x'\n[redis]")
        self.assertEqual(3, self.load(text, maxpackets="3").general.max_packets)

    def test_a_token_in_place_of_a_file(self) -> None:
        """A token on the command line takes precedence over the token file of the configuration."""
        settings = self.load(LEAST + "[cloudshark]\ntokenfile = '/nowhere'", cstoken="t")
        self.assertEqual(Secret("t"), settings.section(CloudSharkSettings).token)

    def test_redis_stays_off(self) -> None:
        """An option of Redis doesn't enable what the file disables."""
        text = "[general]\nwritelocal=true\nlocaldir='/'\n[redis]\nlisten=false\n[http]\nlisten='unix:/s'"
        self.assertFalse(self.section(RedisSettings, text, redisport="1").listen)

    def test_cloudshark_stays_off(self) -> None:
        """Only --upload enables uploading to CloudShark."""
        self.assertFalse(self.section(CloudSharkSettings, LEAST, cshost="h", cstoken="t").upload)
