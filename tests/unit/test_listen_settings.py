"""Where the HTTP source listens."""

from __future__ import annotations

from pcapsvc.core.role import ALL_ROLES, Role
from pcapsvc.host.manhole.masking import masked
from pcapsvc.settings import Secret
from pcapsvc.settings.listen import read_listener
from pcapsvc.settings.secret import secrets_in
from pcapsvc.sources.http.settings import HttpSettings
from tests.unit.settings_case import SettingsTestCase


class ListenTests(SettingsTestCase):
    """The listening address decides whether a token is needed."""

    HTTP = "[general]\nwritelocal = true\nlocaldir = '/tmp'\n[http]\n"

    def test_local(self) -> None:
        """A loopback address or a unix socket needs no token."""
        for listen in (
            "tcp:8480:interface=127.0.0.1",
            "tcp:8480:127.0.0.1",
            "tcp:port=8480:interface=127.8.9.1",
            "tcp:0:interface=localhost",
            r"tcp6:8480:interface=\:\:1",
            "unix:/run/pcapsvc.sock:mode=660",
            r"unix:address=/run/a\:b",
        ):
            self.assertEqual(listen, self.section(HttpSettings, f"{self.HTTP}listen = '{listen}'").listen)

    def test_not_local(self) -> None:
        """Any other address needs one; without an interface, it is every address."""
        path = self.file("hunter2-hunter2\n")
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
            [token] = self.section(HttpSettings, f"{text}tokenfile = '{path}'").tokens
            self.assertEqual((token.secret, token.roles), (Secret("hunter2-hunter2"), ALL_ROLES))

    def test_tokens(self) -> None:
        """A file lists tokens, each perhaps with a role; comments and empty lines are left out."""
        path = self.file(
            "# Grafana\n\nhunter1-hunter1 read\n  hunter2-hunter2\tcapture  \r\nhunter3-hunter3\n\n"
        )
        text = f"{self.HTTP}listen = 'tcp:8480'\ntokenfile = '{path}'"
        tokens = self.section(HttpSettings, text).tokens
        self.assertEqual(
            [(token.secret.reveal(), token.roles) for token in tokens],
            [
                ("hunter1-hunter1", {Role.READ}),
                ("hunter2-hunter2", {Role.CAPTURE}),
                ("hunter3-hunter3", ALL_ROLES),
            ],
        )
        self.assertNotIn("hunter", repr(tokens))
        self.assertNotIn("hunter", repr(masked(self.load(text))))
        self.assertLessEqual({token.secret.reveal() for token in tokens}, set(secrets_in(self.load(text))))

    def test_wrong_tokens(self) -> None:
        """Every line that is wrong is a problem with its number, and shows nothing of the line."""
        path = self.file(
            "hunter1-hunter1\nhunter2\nhunter3-hunter3 write\n#\nhunter4-hunter4 read capture\n"
            "hunter1-hunter1 read\nhunter5\x00-hunter5\n"
        )
        role = "must be a token, or a token and a role: read or capture"
        found = self.problems(f"{self.HTTP}listen = 'tcp:8480'\ntokenfile = '{path}'")
        self.assertEqual(
            found,
            [
                f'http.tokenfile = "{path}": line {number} {rule}'
                for number, rule in (
                    (2, "must have a token of at least 8 characters"),
                    (3, role),
                    (5, role),
                    (6, "has a token that was given before; without a role, a token has both"),
                    (7, role),
                )
            ],
        )
        self.assertNotIn("hunter", str(found))

    def test_no_tokens(self) -> None:
        """A file without a token is a problem, as everyone would be admitted; so is one with too many."""
        for content, rule in (
            ("", "there is none"),
            ("# none yet\n\n", "there is none"),
            ("\n".join(f"hunter{number:08}" for number in range(101)), "up to 100"),
        ):
            path = self.file(content)
            problem = self.only_problem(f"{self.HTTP}listen = 'tcp:8480'\ntokenfile = '{path}'")
            self.assertIn(f'http.tokenfile = "{path}": must be a file with ', problem)
            self.assertIn(rule, problem)

    def test_short_token(self) -> None:
        """A token of fewer than 8 characters is rejected: it could be guessed, and can't be masked."""
        for token, accepted in (("1234567", False), ("12345678", True)):
            text = f"{self.HTTP}listen = 'tcp:8480'\ntokenfile = '{self.file(token)}'"
            if accepted:
                self.load(text)
            else:
                problem = self.only_problem(text)
                self.assertIn("line 1 must have a token of at least 8 characters", problem)
                self.assertNotIn(token, problem)

    def test_local_by_its_kind(self) -> None:
        """With TLS it is the same. Of a socket from systemd, only the domain is known."""
        for listen, local in (
            ("ssl:8443:interface=127.0.0.1", True),
            ("ssl:8443", False),
            ("systemd:domain=UNIX:index=0", True),
            ("systemd:domain=INET:name=http", False),
        ):
            self.assertEqual(local, read_listener(listen).local, listen)

    def test_no_endpoints(self) -> None:
        """An invalid endpoint string is a problem with the rule that it breaks."""
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
            ("tcp:1:iface=127.0.0.1", "the unknown parameter 'iface'"),
            ("tcp:1:port=2", "gives 'port' twice"),
            ("tcp:1:::2", "too many parameters for 'tcp'; a colon within a value must be escaped"),
            ("tcp:1:interface=127.0.0.1:backlog=x", "must give 'backlog'"),
            ("tcp6:8480:interface=::1", "gives 'interface' twice; a colon within a value must be escaped"),
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
        """A string is parsed as Twisted parses it."""
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
