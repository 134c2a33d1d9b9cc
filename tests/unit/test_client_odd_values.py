"""Options and configurations of pcapctl with values that nobody gives on purpose."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from pathlib import Path

from pcapsvc.client.installing import extcap_directory
from pcapsvc.client.main import main
from pcapsvc.client.profile import choose_profile, configuration_file
from pcapsvc.client.status import UsageProblem
from pcapsvc.client.views import JsonView, LineView
from tests.unit.options_case import OptionsTestCase


class OddValueTests(OptionsTestCase):
    """Values that nobody gives on purpose are wrong usage, rather than something else or a traceback."""

    def test_empty(self) -> None:
        """An empty option, perhaps a variable that isn't set, doesn't count as one that isn't given."""
        api = ("--api", "http://127.0.0.1:1")
        for words in (
            ("list", *api, "--profile", ""),
            ("list", *api, "--request", ""),
            ("show", *api, ""),
            ("stop", *api, ""),
            ("stop", "--via", "http://127.0.0.1:1", "--request", "r", "--node", ""),
            ("stop", "--via", "http://127.0.0.1:1", "--request", "r", "--nodere", ""),
            ("watch", *api, "--request", ""),
            ("watch", *api, "--node", ""),
            ("watch", *api, "-i", ""),
            ("watch", *api, "--type", ""),
            ("capture", "--via", "http://127.0.0.1:1", "-i", "lo", "--puturl", ""),
            ("install-extcap", "--dir", ""),
            ("check-request", ""),
            ("check-config", ""),
        ):
            status, errors = self.run_main(*words)
            self.assertEqual((status, "empty" in errors), (2, True), (words, errors))

    def test_repeated(self) -> None:
        """What selects nodes, a request or a state is not ignored because it is given a second time."""
        place = ("--via", "http://127.0.0.1:1")
        for words in (
            ("capture", *place, "-i", "lo", "--node", "a", "--node", "b"),
            ("capture", *place, "-i", "lo", "--nodere", "a", "--nodere", "b"),
            ("stop", *place, "--request", "r", "--node", "a", "--node", "b"),
            ("stop", *place, "--request", "r", "--request", "s"),
            ("list", *place, "--request", "r", "--request", "s"),
            ("list", *place, "--state", "done", "--state", "failed"),
            ("watch", *place, "--request", "r", "--request", "s"),
        ):
            status, errors = self.run_main(*words)
            self.assertEqual(
                (status, f"{words[-2]}: can't be repeated" in errors), (2, True), (words, errors)
            )

    def test_stop(self) -> None:
        """What would not limit which captures are stopped is refused."""
        via = ("--via", "http://127.0.0.1:1")
        for words, expected in (
            ((*via, "--request", "r", "--api", "http://127.0.0.1:2"), "--api has no effect"),
            ((*via, "--node", "a", "an-id"), "go with --request"),
            ((*via, "--all", "an-id"), "go with --request"),
        ):
            status, errors = self.run_main("stop", *words)
            self.assertEqual((status, expected in errors), (2, True), (words, errors))

    def test_numbers(self) -> None:
        """A deadline is a time that can pass, and a node or more are expected."""
        for words in (("--deadline", "nan"), ("--deadline", "inf"), ("--deadline", "-1"), ("--expect", "0")):
            status, errors = self.run_main("capture", "--via", "http://127.0.0.1:1", "-i", "lo", *words)
            self.assertEqual((status, words[0] in errors), (2, True), (words, errors))

    def test_paths(self) -> None:
        """A path that no file can have is reported; C{~} is the home directory in each of them."""
        for key in ("tokenfile", "passwordfile", "cafile"):
            for path in ("", r"a\u0000b", "~nobody-has-this-name/a"):
                self.configure(f'[profiles.p]\napis = "http://127.0.0.1:1"\n{key} = "{path}"\n')
                self.assertRaises(UsageProblem, self.connections, "--profile", "p")
        (self.home / "ca.pem").write_text("no certificates")
        self.patch(os, "environ", {**os.environ, "HOME": str(self.home)})
        problem = self.assertRaises(UsageProblem, self.connections, "--cafile", "~/ca.pem")
        self.assertIn("has no certificates", str(problem))

    def test_home(self) -> None:
        """An empty HOME is not the working directory."""
        for environment in ({}, {"HOME": ""}):
            self.assertEqual(configuration_file(environment), Path("/.config/pcapctl.toml"))
            self.assertTrue(extcap_directory(environment, None).is_absolute())

    def test_profile_without_name(self) -> None:
        """A profile may have an empty name, by which it is not the default one."""
        self.configure(
            'default = "p"\n[profiles.p]\nvia = "redis://p"\n[profiles.""]\nvia = "redis://none"\n'
        )
        self.assertEqual(choose_profile("", self.environment).via, "redis://none")
        self.assertEqual(choose_profile(None, self.environment).via, "redis://p")

    def test_not_utf_8(self) -> None:
        """An address, a token or a password that can't be sent is wrong usage, and nothing of it is shown."""
        for words, variable, value, rule in (
            (["--via", "redis://h/\udcff"], "X", "", "not a valid redis address (not UTF-8)"),
            (["--via", "sqs:http://h/\udcff"], "X", "", "not a valid sqs address (not UTF-8)"),
            (["--via", "kafka://u:hunter2\udcff@h:1"], "X", "", "not a valid kafka address (not UTF-8)"),
            (["--via", "redis://h"], "PCAPCTL_PASSWORD", "hunter2\udcff", "the password is not UTF-8"),
            (
                ["--via", "http://h"],
                "PCAPCTL_TOKEN",
                "hunter2\udcff",
                "must consist of printable characters",
            ),
            (
                ["--via", "http://h"],
                "PCAPCTL_TOKEN",
                "hunter2\nX: y",
                "must consist of printable characters",
            ),
        ):
            self.environment = {**self.environment, variable: value}
            error = str(self.assertRaises(UsageProblem, self.connections, *words))
            self.assertIn(rule, error)
            self.assertNotIn("hunter2", error)
            del self.environment[variable]
        self.assertEqual(str(self.connections("--via", "unix:/\udcff").via[0]), "unix:/\udcff")

    def test_errors_not_written(self) -> None:
        """If standard error can't be written to, the exit status is the same."""

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "environ", {**os.environ, **self.environment})
        with contextlib.redirect_stderr(Full()):
            self.assertEqual(main(["list", "--profile", "none"]), 2)
            self.assertEqual(main(["list", "--api", "http://127.0.0.1:1"]), 4)
            for view in (LineView(io.StringIO()), JsonView(io.StringIO())):
                view.note("this goes on")
