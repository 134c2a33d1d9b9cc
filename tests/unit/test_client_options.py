"""What pcapctl makes of its options, of its configuration and of the environment."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pcapsvc.client.address import HttpAddress, RedisAddress
from pcapsvc.client.api import ANSWER_SECONDS
from pcapsvc.client.connections import Connections
from pcapsvc.client.main import COMPRESSIONS, DIRECTIONS, FLAGS, main, parser
from pcapsvc.client.message import check_message, encode
from pcapsvc.client.profile import choose_profile, configuration_file, read_secret
from pcapsvc.client.status import ExitStatus, UsageProblem
from pcapsvc.core import condition_values as core
from pcapsvc.core.compression import CHOICES
from pcapsvc.core.conditions import CONDITIONS
from pcapsvc.core.mask import of_process
from tests.unit.options_case import OptionsTestCase

_SECRET = "hunter2-hunter2"


class RequestTests(OptionsTestCase):
    """From options to a request."""

    def test_fields(self) -> None:
        """Each option is a field; the words of the filter come last, and need no quotes."""
        found = self.fields(
            *("--nodere", "^web-", "-i", "eth0", "-ieth1", "-c5", "--bytes", "6", "--timeout", "7"),
            *("--duration", "8", "-s", "96", "--before", "9", "--pastonly", "--beforeoptional"),
            *("--tag", "a", "--tag", "b", "--customer", "c", "--alertid", "d", "tcp", "port", "443"),
        )
        expected = {
            "nodere": "^web-",
            "interface": ["eth0", "eth1"],
            "packets": 5,
            "bytes": 6,
            "timeout": 7,
            "duration": 8,
            "snap": 96,
            "before": 9,
            "pastonly": True,
            "beforeoptional": True,
            "tags": "a,b",
            "customer": "c",
            "alertid": "d",
            "bpf": "tcp port 443",
        }
        self.assertEqual(found, expected)
        check_message(encode(found))
        self.assertEqual(self.fields("--all", "--alias", "x"), {"node": "any", "alias": ["x"]})
        found = self.fields("--all", "-i", "x", "--format", "pcapng", "--compress", "zstd")
        self.assertEqual(found, {"node": "any", "interface": ["x"], "format": "pcapng", "compress": "zstd"})
        self.assertEqual(COMPRESSIONS, CHOICES)
        found = self.fields("--all", "-i", "x", "--rolling", "--bytes", "9")
        self.assertEqual(found, {"node": "any", "interface": ["x"], "rolling": True, "bytes": 9})
        check_message(encode(found))

    def test_plain_words(self) -> None:
        """Each option that says which packets may be repeated, and replaces its default only."""
        found = self.fields(
            *("--host", "192.0.2.1", "--host", "2001:db8::1", "--net", "10.0.0.0/8", "--port", "80"),
            *("--port", "0", "--portrange", "8000-8100", "--protocol", "TCP", "--protocol", "47"),
            *("--src", "[::1]:80", "--dst", "192.0.2.1:443", "--flags", "syn", "--flags", "RST"),
            *("--vlan", "0", "--direction", "in", "less", "100"),
            defaults={"node": "a", "interface": ["x"], "port": 1, "customer": "c"},
        )
        expected = {
            "node": "a",
            "interface": ["x"],
            "customer": "c",
            "bpf": "less 100",
            "host": ["192.0.2.1", "2001:db8::1"],
            "net": ["10.0.0.0/8"],
            "port": [80, 0],
            "portrange": ["8000-8100"],
            "protocol": ["TCP", 47],
            "src": ["[::1]:80"],
            "dst": ["192.0.2.1:443"],
            "flags": ["syn", "rst"],
            "vlan": [0],
            "direction": ["in"],
        }
        self.assertEqual(found, expected)
        self.assertEqual({name for name in expected if name in CONDITIONS}, set(CONDITIONS))
        check_message(encode(found))
        self.assertEqual((FLAGS, DIRECTIONS), (tuple(core.FLAGS), tuple(core.DIRECTIONS)))

    def test_plain_words_wrong(self) -> None:
        """Wrong values are reported by field before anything is sent."""
        wrong = ("--host", "web-1", "--net", "192.0.2.1/24", "--port", "70000", "--protocol", "99999999999")
        wrong += ("--src", "fe80::1%eth0", "--vlan", "-1", "--portrange", "9-8")
        status, errors = self.run_main("capture", "--via", "redis://127.0.0.1:1", "--all", "-i", "lo", *wrong)
        self.assertEqual(status, 2)
        for name in wrong[::2]:
            self.assertIn(f"\n  {name[2:]} = ", errors)
        self.assertIn("the network is 192.0.2.0/24", errors)
        for words in (("--port", "https"), ("--flags", "sin"), ("--direction", "up")):
            status, errors = self.run_main(
                "capture", "--via", "redis://127.0.0.1:1", "--all", "-i", "lo", *words
            )
            self.assertEqual((status, words[1] in errors), (2, True))

    def test_dates(self) -> None:
        """A date among the defaults, which TOML has, is a text."""
        fields = {"node": "a", "interface": ["x"], "customer": datetime.date(2026, 1, 2)}
        self.assertEqual(json.loads(encode(fields))["customer"], "2026-01-02")

    def test_defaults(self) -> None:
        """An option replaces a default; another way to name nodes or interfaces replaces both."""
        defaults = {"nodere": "^a", "interface": ["eth0"], "packets": 5, "bpf": "udp"}
        self.assertEqual(self.fields(defaults=defaults), defaults)
        self.assertEqual(
            self.fields("--node", "b", "--alias", "x", "-c", "6", "tcp", defaults=defaults),
            {"node": "b", "alias": ["x"], "packets": 6, "bpf": "tcp"},
        )

    def test_rolling(self) -> None:
        """Defaults that would end a rolling capture don't apply to it; options do, and are rejected."""
        defaults = {"node": "b", "interface": ["x"], "packets": 5, "timeout": 6, "bytes": 7}
        found = self.fields("--rolling", defaults=defaults)
        self.assertEqual(found, {"node": "b", "interface": ["x"], "bytes": 7, "rolling": True})
        self.assertEqual(self.fields("--rolling", "-c", "4", defaults=defaults)["packets"], 4)

    def test_rules(self) -> None:
        """A request is checked by the nodes' rules, all problems at once, before anything is sent."""
        status, errors = self.run_main(
            *("capture", "--via", "redis://127.0.0.1:1", "--nodere", "(", "-i", "a/b", "-c", "0"),
            *("--pastonly", "host", "example.org"),
        )
        self.assertEqual(status, 2)
        for words in ("interface", "packets", "pastonly", "bpf"):
            self.assertIn(f"\n  {words}", errors)
        status, errors = self.run_main("capture", "--via", "redis://127.0.0.1:1", "--nodere", "(", "-i", "lo")
        self.assertEqual((status, "nodere" in errors), (2, True))

    def test_put_url(self) -> None:
        """The URL that captures are put to is an option, in a file, or in the environment, in this order."""
        url = "https://host/{id}?sig=s3cr3ts3cr3t"
        self.assertEqual(self.fields("--puturl", url), {"puturl": url})
        path = self.file(f"{url}\n")
        self.assertEqual(self.fields("--puturl-file", path), {"puturl": url})
        self.assertRaises(UsageProblem, self.fields, "--puturl", url, "--puturl-file", path)
        self.environment["PCAPCTL_PUTURL"] = url
        self.assertEqual(self.fields(), {"puturl": url})
        self.assertEqual(self.fields("--puturl", "https://other/a"), {"puturl": "https://other/a"})

    def test_put_url_rules(self) -> None:
        """The URL is checked as nodes do, and no problem shows its query."""
        address = {"node": "any", "interface": ["eth0", "eth1"]}
        for url in ("ftp://host/a?sig=s3cr3t", "host/a?sig=s3cr3t", "https://host/{node}?sig=s3cr3t"):
            problem = self.assertRaises(UsageProblem, encode, {**address, "puturl": url})
            self.assertIn("puturl: must", str(problem))
            self.assertNotIn("s3cr3t", str(problem))
        encode({**address, "puturl": "https://host/{id}?sig=s3cr3t"})
        encode({**address, "interface": ["eth0"], "puturl": "http://10.0.0.1:8080/a?sig=s3cr3t"})

    def test_usage(self) -> None:
        """What can't be understood is wrong usage, and nothing is sent."""
        for words in (
            (),
            ("capture", "--packets", "many"),
            ("capture", "--pack", "5"),
            ("capture", "-i", "lo"),
            ("capture", "--via", "redis://127.0.0.1:1", "-i", "lo"),
            ("capture", "--via", "redis://127.0.0.1:1", "--node", "a", "--all", "-i", "lo"),
            ("capture", "--profile", "none", "-i", "lo"),
            ("list",),
            ("stop", "--api", "http://127.0.0.1:1"),
            ("check-request", "/nonexistent"),
            *(
                ("capture", "--via", "http://127.0.0.1:1", "-i", "lo", option, "")
                for option in ("--tokenfile", "--passwordfile", "--cafile", "--puturl-file", "-w")
            ),
        ):
            status, errors = self.run_main(*words)
            self.assertEqual(status, 2, words)
            self.assertTrue(errors)

    def test_unknown_options(self) -> None:
        """What isn't an option may be one that follows the filter, if there is one."""
        for words, expected in (
            (("capture", "-i", "lo", "udp", "-z"), "arguments: -z; options come before the filter\n"),
            (("list", "-z"), "arguments: -z\n"),
        ):
            status, errors = self.run_main(*words)
            self.assertEqual(status, 2)
            self.assertIn(expected, errors)

    def test_numbers(self) -> None:
        """What is not a number is named; several in one option are recognized."""
        for words, expected in (
            (("-c", "many"), "argument -c/--packets: 'many' is not a whole number"),
            (
                ("--port", "80,443"),
                "argument --port: '80,443' is not a whole number; to give several values, repeat the option",
            ),
            (("--deadline", "soon"), "argument --deadline: 'soon' is not a number"),
            (
                ("--flags", "syn,ack"),
                "argument --flags: 'syn,ack' is not one value; to give several values, repeat the option",
            ),
            (
                ("--protocol", "tcp,udp"),
                "argument --protocol: 'tcp,udp' is not one value; to give several values, repeat the option",
            ),
            (
                ("--host", "::1,::2"),
                "argument --host: '::1,::2' is not one value; to give several values, repeat the option",
            ),
        ):
            status, errors = self.run_main("capture", *words)
            self.assertEqual((status, errors.splitlines()[0]), (2, f"pcapctl capture: {expected}"))

    def test_missing(self) -> None:
        """What a request or a command lacks is said in options; what a profile adds is said to be its."""
        via = ("--via", "redis://127.0.0.1:1")
        self.configure('[profiles.a]\nvia = "redis://127.0.0.1:1"\n[profiles.a.defaults]\npackts = 5\n')
        for words, expected in (
            (("capture", *via), "--node, --nodere or --all, and -i or --alias must be given"),
            (("capture", *via, "--all"), "-i or --alias must be given"),
            (("watch",), "--via, --reports or --api is missing, and no profile says where events come from"),
            (
                ("capture", "--profile", "a", "--all", "-i", "lo"),
                "the request, with the defaults of the profile, is not valid:\n"
                "  packts: is not a known key; did you mean 'packets'?",
            ),
        ):
            self.assertEqual(self.run_main(*words), (2, f"pcapctl: {expected}\n"))

    def test_check_request(self) -> None:
        """A message in a file is checked, whatever it asks of S3 and of aliases."""
        message = {"node": "a", "alias": ["x"], "bucket": "b", "encryption": True}
        self.assertEqual(self.run_main("check-request", self.file(json.dumps(message))), (0, ""))
        status, errors = self.run_main("check-request", self.file(json.dumps({**message, "bfp": "udp"})))
        self.assertEqual((status, "did you mean 'bpf'" in errors), (2, True))
        self.assertEqual(self.run_main("check-request", self.file('{"node": "a", "stop": "r"}')), (0, ""))

    def test_check_config(self) -> None:
        """A configuration of the daemon is checked by the daemon's own rules."""
        good = self.file("[general]\nwritelocal = true\nlocaldir = '/tmp'\n[redis]\nlisten = true\n")
        self.assertEqual(main(["check-config", good]), 0)
        self.assertEqual(main(["check-config", self.file("[general]\nmaxpackets = 'x'\n")]), 2)

    def test_check_elsewhere(self) -> None:
        """A module in the current directory is not run: it may be anybody's."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for name in ("grp", "pcapsvc"):
            (directory / f"{name}.py").write_text("raise SystemExit('planted')")
        (directory / "c.toml").write_text("")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pcapsvc.client", "check-config", "c.toml"],
            cwd=directory,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertNotIn("planted", done.stderr)
        self.assertIn("the configuration has problems", done.stderr)

    def test_check_interrupted(self) -> None:
        """Ctrl-C is for pcapctl alone: the process that checks a configuration is ended by it."""
        program = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)"
        run = subprocess.run

        def look(_: Any, **more: Any) -> Any:
            return run([sys.executable, "-c", program], **more)

        self.patch(subprocess, "run", look)
        self.assertEqual(self.run_main("check-config", "x"), (0, ""))


class ConfigurationTests(OptionsTestCase):
    """Profiles, secrets and the environment."""

    def test_profiles(self) -> None:
        """A profile is chosen by option, environment or default; an option replaces what it has."""
        self.configure(
            'default = "a"\n[profiles.a]\nvia = "redis://h"\napis = ["http://web-1:8480"]\n'
            "[profiles.a.defaults]\npackets = 5\nNode = 'x'\n"
            '[profiles.b]\nvia = ["http://x:1"]\nreports = "redis://h"\n'
        )
        first = self.connections()
        self.assertEqual(first.via, [RedisAddress(host="h", port=6379, channel="capture", tls=False)])
        self.assertEqual(
            first.reports, [RedisAddress(host="h", port=6379, channel="capture-events", tls=False)]
        )
        self.assertEqual(first.apis, [HttpAddress(host="web-1", port=8480)])
        self.assertEqual(first.profile.defaults, {"packets": 5, "node": "x"})
        self.environment["PCAPCTL_PROFILE"] = "b"
        second = self.connections()
        self.assertEqual((str(second.via[0]), str(second.reports[0])), ("http://x:1", str(first.reports[0])))
        self.assertEqual(self.connections("--profile", "a").via, first.via)
        self.assertEqual(self.connections("--via", "http://y:1").reports, [HttpAddress(host="y", port=1)])

    def test_apis(self) -> None:
        """Nodes are looked at that are given with the command, or else those of the profile."""
        self.configure('[profiles.a]\nvia = "http://x:1"\napis = ["http://y:1", "http://*.z:1"]\n')
        for words, expected in (
            ((), ["http://x:1", "http://y:1"]),
            (("--api", "http://b:1", "--api", "http://b:1"), ["http://b:1"]),
            (("--via", "http://b:1"), ["http://b:1"]),
            (("--via", "http://b:1", "--api", "http://c:1"), ["http://b:1", "http://c:1"]),
        ):
            found = self.connections("--profile", "a", *words)
            self.assertEqual([str(api.address) for api in found.needed_apis()], expected, words)
        self.assertRaises(UsageProblem, self.connections("--api", "http://*.z:1").needed_apis)

    def test_again(self) -> None:
        """Other commands get to the same nodes with the same profile, addresses, users and files."""
        self.configure('[profiles.a]\nvia = "http://x:1"\n')
        secret = self.file("s")
        words = ("--profile", "a", "--tokenfile", secret, "--passwordfile", secret)
        self.assertEqual(shlex.split(self.connections(*words).options), [*words])
        words = ("--tokenfile", secret, "--via", "redis://u@h:6379/c", "--via", "http://x:1")
        self.assertEqual(shlex.split(self.connections(*words).options), [*words])

    def test_watched(self) -> None:
        """Events are read from the APIs if they are given with the command, or if nothing else is known."""
        self.configure(
            '[profiles.a]\nvia = "redis://h"\napis = ["http://web-1:8480"]\n'
            '[profiles.b]\nvia = "http://x:1"\n[profiles.c]\napis = ["http://web-1:8480"]\n'
        )
        api = ("--api", "http://web-2:1", "--api", "http://web-3:1", "--api", "http://web-2:1")
        given = ["http://web-2:1", "http://web-3:1"]
        for words, expected in (
            (api, given),
            (("--profile", "a", *api), given),
            (("--profile", "b", *api), given),
            (("--profile", "a"), ["redis://h:6379/capture-events"]),
            (("--profile", "c"), ["http://web-1:8480"]),
            (("--via", "redis://i", *api), ["redis://i:6379/capture-events"]),
            (("--reports", "redis://i", *api), ["redis://i:6379/capture-events"]),
        ):
            options = parser().parse_args(["watch", *words])
            found = Connections(options, self.environment).watched()
            self.assertEqual([str(each) for each in found], expected, words)

    def test_wrong(self) -> None:
        """Everything that is wrong with a configuration is reported, without its values if they are URLs."""
        self.configure(
            f'default = "c"\nunknown = 1\n[profiles.a]\nvia = 5\nnope = 1\nreports = ["{_SECRET}", 5]\n'
        )
        error = str(self.assertRaises(UsageProblem, choose_profile, None, self.environment))
        for words in ("default", "unknown", "profiles.a.via", "profiles.a.nope", "profiles.a.reports"):
            self.assertIn(words, error)
        self.assertNotIn(_SECRET, error)
        self.configure("[")
        self.assertRaises(UsageProblem, choose_profile, None, self.environment)

    def test_certificates(self) -> None:
        """A file of certificates that can't be used is wrong usage, however the nodes are reached."""
        for path, words in (("/nonexistent", "No such file"), (self.file("none"), "has no certificates")):
            for command in (
                ["list", "--api", "https://127.0.0.1:1"],
                ["capture", "--all", "-i", "lo", "--via", "rediss://127.0.0.1:1"],
                ["capture", "--all", "-i", "lo", "--via", "kafkas://127.0.0.1:1"],
            ):
                status, errors = self.run_main(*command, "--cafile", path)
                self.assertEqual((status, errors.count(path)), (ExitStatus.USAGE, 1), errors)
                self.assertIn(words, errors)

    def test_endless_files(self) -> None:
        """A file that doesn't come to an end is not read to it."""
        error = self.assertRaises(UsageProblem, read_secret, "/dev/zero")
        self.assertEqual(str(error), "/dev/zero: is longer than 1048576 bytes")
        (self.home / "pcapctl.toml").symlink_to("/dev/zero")
        error = self.assertRaises(UsageProblem, choose_profile, None, self.environment)
        self.assertIn("is longer than", str(error))

    def test_unreadable(self) -> None:
        """What the library can't read is reported, whatever it raises."""
        for text, words in (
            ("a = " + "[" * 5000, "nested too deeply"),
            ("a = " + "9" * 5000, "too many digits"),
            ('default = ["a"]\n[profiles.a]', "default: must be the name of a profile"),
        ):
            self.configure(text)
            error = self.assertRaises(UsageProblem, choose_profile, None, self.environment)
            self.assertIn(words, str(error))

    def test_place(self) -> None:
        """The configuration is where the XDG Base Directory Specification has it."""
        for environment, expected in (
            ({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, "/x/pcapctl.toml"),
            ({"XDG_CONFIG_HOME": "relative", "HOME": "/h"}, "/h/.config/pcapctl.toml"),
            ({"HOME": "/h"}, "/h/.config/pcapctl.toml"),
        ):
            self.assertEqual(str(configuration_file(environment)), expected)

    def test_secrets(self) -> None:
        """A secret comes from an option's file, the environment or the profile's file, in this order."""
        path = self.file(f"{_SECRET}\n")
        self.configure(f'default = "a"\n[profiles.a]\nvia = "http://h"\ntokenfile = "{path}"\n')
        self.assertEqual(self.connections().credentials.token, _SECRET)
        self.environment["PCAPCTL_TOKEN"] = "another"
        self.assertEqual(self.connections().credentials.token, "another")
        found = self.connections("--tokenfile", path).credentials
        self.assertEqual(found.token, _SECRET)
        self.assertNotIn(_SECRET, repr(found))
        self.assertEqual(of_process(f"Bearer {_SECRET}"), "Bearer <secret>")
        for text in ("", "a\nb\n"):
            self.assertRaises(UsageProblem, self.connections, "--tokenfile", self.file(text))

    def test_byte_order_mark(self) -> None:
        """A byte order mark at the start of a file is skipped, whatever the locale is."""
        path = self.file("\ufeff" + _SECRET + "\n")
        self.configure(f'\ufeffdefault = "ü"\n[profiles."ü"]\nvia = "http://h"\ntokenfile = "{path}"\n')
        self.assertEqual(self.connections().credentials.token, _SECRET)

    def test_token_stays(self) -> None:
        """An API that an event names is only sent the token if the user has named it as well."""
        self.configure('[profiles.a]\nvia = "redis://h"\napis = ["https://web-*.example.org:8480"]\n')
        self.environment["PCAPCTL_TOKEN"] = _SECRET
        connections = self.connections("--profile", "a")
        self.assertEqual(connections.apis, [])
        for host, expected in (("web-1.example.org", _SECRET), ("evil.example.org", None)):
            address = HttpAddress(host=host, port=8480, tls=True)
            self.assertEqual(connections.credentials.token_for(address), expected)


class OutputTests(OptionsTestCase):
    """What is written, and to whom."""

    def run_client(self, *words: str, redirection: str = "", **variables: str) -> subprocess.Popen[str]:
        """Run pcapctl in a process of its own, started by a shell."""
        command = [sys.executable, "-m", "pcapsvc.client", *words]
        return subprocess.Popen(
            ["sh", "-c", f'exec "$0" "$@" {redirection}', *command],
            env={**os.environ, **self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_reader_gone(self) -> None:
        """If the reader of its output ends, so does it, without a word; but not everything is done."""
        running = self.run_client("schema")
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
        running.stderr.close()
        self.assertEqual((running.wait(60), errors), (1, ""))

    def test_interrupted(self) -> None:
        """Ctrl-C doesn't wait for nodes that don't answer."""
        places = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        via = []
        for place in places:
            self.addCleanup(place.close)
            via += ["--via", f"http://127.0.0.1:{place.getsockname()[1]}"]
        running = self.run_client("capture", *via, "-i", "lo", "--wait")
        for place in places:
            place.settimeout(60)
            self.addCleanup(place.accept()[0].close)
        running.send_signal(signal.SIGINT)
        # Before a node is given up, which takes longer.
        self.assertEqual(running.communicate(timeout=ANSWER_SECONDS - 5), ("", ""))
        self.assertEqual(running.returncode, 130)

    def test_full(self) -> None:
        """If the output can't be written, that is the error."""
        self.configure("[profiles.a]\n")
        running = self.run_client("profiles", redirection=">/dev/full")
        self.assertEqual(running.communicate(timeout=60)[1], "pcapctl: No space left on device\n")
        self.assertEqual(running.returncode, 1)

    def test_closed(self) -> None:
        """Standard streams may be closed. What was for one of them goes nowhere, and so not to another."""
        self.configure("[profiles.a]\n")
        for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            running = self.run_client("profiles", redirection=redirection)
            expected = "" if " >&-" in f" {redirection}" else "a\n"
            self.assertEqual(running.communicate(timeout=60), (expected, ""), redirection)
            self.assertEqual(running.returncode, 0, redirection)
        running = self.run_client("list", "--api", "http://127.0.0.1:1", redirection="2>&-")
        self.assertEqual(running.communicate(timeout=60), ("", ""))
        self.assertEqual(running.returncode, 4)

    def test_encoding(self) -> None:
        """What the encoding of the terminal doesn't have is replaced."""
        self.configure('[profiles."b\u00fcro"]\n')
        output, errors = self.run_client("profiles", PYTHONIOENCODING="ascii").communicate(timeout=60)
        self.assertEqual((output, errors), ("b?ro\n", ""))
