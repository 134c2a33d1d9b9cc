"""C{[manhole]}: what it needs, and that nothing of it is loaded without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pcapsvc.host.manhole.settings import ManholeSettings
from tests.unit.settings_case import LEAST, SettingsTestCase
from tests.unit.test_manhole_keys import ED25519, LINE, private

_LOADED = """
import json, sys
from pcapsvc.tap import Options, makeService
options = Options()
options.parseOptions(["--config", sys.argv[1]])
makeService(options)
print(json.dumps(sorted(sys.modules)))
"""

# Clients that need TLS load cryptography, too.
_WITHOUT_TLS = """
[general]
writelocal = true
localdir = "/tmp"
[http]
listen = "tcp:8480:interface=127.0.0.1"
"""


class ManholeSettingsTests(SettingsTestCase):
    """What the configuration may say."""

    def setUp(self) -> None:
        """Good files."""
        self.authorized_keys = Path(self.mktemp())
        self.authorized_keys.write_text(LINE)
        self.authorized_keys.chmod(0o600)
        self.host_key = Path(self.mktemp())
        self.host_key.write_bytes(private(ED25519))
        self.host_key.chmod(0o600)

    def text(self, listen: str = "tcp:2222:interface=127.0.0.1") -> str:
        """A configuration."""
        return (
            f'{LEAST}[manhole]\nlisten = "{listen}"\nauthorizedkeys = "{self.authorized_keys}"\n'
            f'hostkey = "{self.host_key}"\n'
        )

    def test_where_it_may_listen(self) -> None:
        """It may listen on a loopback address and on a unix socket."""
        for listen in (
            "tcp:2222:interface=127.0.0.1",
            "tcp:0:interface=localhost",
            r"tcp6:2222:interface=\\:\\:1",
            "unix:/run/pcapsvc/manhole.sock",
            "unix:/run/pcapsvc/manhole.sock:mode=600",
        ):
            self.assertTrue(self.section(ManholeSettings, self.text(listen)).is_enabled(), listen)

    def test_where_it_may_not_listen(self) -> None:
        """Nothing that others can reach is allowed, nor TLS."""
        for listen in (
            "tcp:2222",
            "tcp:2222:interface=0.0.0.0",
            "tcp:2222:interface=192.0.2.1",
            "tcp6:2222",
            "ssl:2222:interface=127.0.0.1",
            "systemd:domain=INET:index=0",
        ):
            problem = self.only_problem(self.text(listen))
            self.assertIn("must be an endpoint on a loopback address", problem)
        self.assertIn("must be an endpoint that starts with", self.only_problem(self.text("2222")))

    def test_needs_both_files(self) -> None:
        """To listen, it needs both paths."""
        self.assertEqual(
            self.problems(f'{LEAST}[manhole]\nlisten = "unix:/tmp/socket"'),
            [
                'manhole.listen = "unix:/tmp/socket": needs manhole.authorizedkeys',
                'manhole.listen = "unix:/tmp/socket": needs manhole.hostkey',
            ],
        )

    def test_files(self) -> None:
        """Both files are read when the configuration is, and each problem is printed."""
        self.authorized_keys.write_text(f"{LINE}\nnonsense\nrestrict {LINE}")
        self.host_key.chmod(0o640)
        problems = self.problems(self.text())
        self.assertEqual(len(problems), 3)
        start = r"manhole\.authorizedkeys = \"/.*: must be an authorized_keys file, and line"
        self.assertRegex(problems[0], f"^{start} 2 does not begin with a type of key")
        self.assertRegex(problems[1], f"^{start} 3 has options in front of the key")
        self.assertRegex(problems[2], r'^manhole\.hostkey = "/.* its mode is 0640$')

    def test_a_host_key_to_be_created(self) -> None:
        """The host key needs not be there."""
        self.host_key.unlink()
        self.assertTrue(self.section(ManholeSettings, self.text()).is_enabled())

    def test_off(self) -> None:
        """Without C{listen} the files are not looked at."""
        text = f'{LEAST}[manhole]\nauthorizedkeys = "/nowhere"\nhostkey = "/nowhere"\n'
        self.assertFalse(self.section(ManholeSettings, text).is_enabled())


class NotLoadedTests(SettingsTestCase):
    """What a daemon without a manhole loads."""

    def loaded(self, text: str) -> set[str]:
        """The modules that a process has loaded after it built the daemon."""
        done = subprocess.run(
            [sys.executable, "-c", _LOADED, os.path.abspath(self.file(text))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return set(json.loads(done.stdout))

    def test_without(self) -> None:
        """Neither Conch, nor cryptography, nor the manhole itself is loaded."""
        loaded = self.loaded(_WITHOUT_TLS)
        for module in loaded:
            self.assertNotIn(module.split(".")[0], ("bcrypt", "cryptography"))
            self.assertFalse(module.startswith("twisted.conch"), module)
        ours = {module for module in loaded if module.startswith("pcapsvc.host.manhole.")}
        self.assertEqual(ours, {"pcapsvc.host.manhole.settings"})

    def test_with(self) -> None:
        """With one, they are: the names above are those that tell."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        keys = directory / "authorized_keys"
        keys.write_text(LINE)
        keys.chmod(0o600)
        loaded = self.loaded(
            f'{_WITHOUT_TLS}[manhole]\nlisten = "unix:{directory}/s"\nauthorizedkeys = "{keys}"\n'
            f'hostkey = "{directory}/key"\n'
        )
        wanted = {"bcrypt", "cryptography", "twisted.conch.ssh.keys", "pcapsvc.host.manhole.service"}
        self.assertEqual(wanted - loaded, set())
