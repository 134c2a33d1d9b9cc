"""The manhole's console, without SSH: what it prints, hides, bounds and interrupts."""

from __future__ import annotations

import signal
import time
from base64 import b64decode
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial import unittest

from pcapsvc.core.mask import HIDDEN, Mask
from pcapsvc.host.manhole.console import MAX_OUTPUT_CHARACTERS, Console, Exit
from pcapsvc.host.manhole.masking import masked
from pcapsvc.host.manhole.time_limit import TakesTooLong, TimeLimit
from pcapsvc.settings import Secret, Settings
from pcapsvc.settings.secret import secrets_in
from pcapsvc.sources.redis.settings import RedisSettings
from tests.cost import takes_less

PASSWORD = "hunter2 'and' \"Ü\\"


class ConsoleCase(unittest.SynchronousTestCase):
    """A console that writes to a list."""

    def setUp(self) -> None:
        """One whose lines have a minute: on a busy machine, any may take seconds."""
        self.written: list[str] = []
        self.later: list[str] = []
        self.limit = TimeLimit(60.0)
        self.limit.install()
        self.addCleanup(self.limit.uninstall)
        self.names: dict[str, Any] = {"deferred": Deferred(), "password": PASSWORD}
        self.console = self.make()

    def make(self, limit: TimeLimit | None = None) -> Console:
        """One more."""
        return Console(
            self.names,
            self.written.append,
            write_later=self.later.append,
            mask=Mask([PASSWORD]),
            limit=limit or self.limit,
        )

    def enter(self, *lines: str) -> str:
        """What is written when lines are entered."""
        self.written.clear()
        for line in lines:
            self.console.push(line)
        return "".join(self.written)


class ConsoleTests(ConsoleCase):
    """Lines, values and errors."""

    def test_values(self) -> None:
        """The value of an expression is shown, and C{_} is it; L{None} is not."""
        self.assertEqual(self.enter("6 * 7"), "42\n")
        self.assertEqual(self.enter("_ + 1"), "43\n")
        self.assertEqual(self.enter("None"), "")

    def test_lines(self) -> None:
        """A block takes lines until an empty one, and says so."""
        self.assertTrue(self.console.push("for i in range(2):"))
        self.assertTrue(self.console.push("    print(i)"))
        self.assertFalse(self.console.push(""))
        self.assertEqual("".join(self.written), "0\n1\n")

    def test_forget_lines(self) -> None:
        """Lines that wait for more can be given up."""
        self.console.push("for i in range(2):")
        self.console.forget_lines()
        self.assertEqual(self.enter("1"), "1\n")

    def test_errors(self) -> None:
        """A traceback begins with the line, and the next line is run."""
        text = self.enter("1 / 0")
        self.assertTrue(
            text.startswith('Traceback (most recent call last):\n  File "<manhole>", line 1'), text
        )
        self.assertIn("ZeroDivisionError", text)
        self.assertIn("SyntaxError", self.enter("1 +* 2"))
        self.assertIn("KeyboardInterrupt", self.enter("raise KeyboardInterrupt"))
        self.assertEqual(self.enter("1"), "1\n")

    def test_exit(self) -> None:
        """C{exit()} closes the session, not the daemon."""
        self.assertRaises(Exit, self.console.push, "raise SystemExit")
        self.assertEqual(self.console.run("raise SystemExit"), 0)

    def test_exit_status(self) -> None:
        """A command exits with the status that it asks for, and says so unless that is success."""
        for code, status, text in (
            ("", 0, ""),
            ("0", 0, ""),
            ("False", 0, ""),
            ("3", 3, "SystemExit: 3\n"),
            ("'foo'", 1, "SystemExit: foo\n"),
            ("256", 1, "SystemExit: 256\n"),
            ("-1", 1, "SystemExit: -1\n"),
            ("'\\x1b'", 1, "SystemExit: \\x1b\n"),
        ):
            self.written.clear()
            self.assertEqual(self.console.run(f"raise SystemExit({code})"), status, code)
            self.assertEqual("".join(self.written), text)

    def test_input(self) -> None:
        """Nobody answers what asks at standard input."""
        self.assertIn("EOFError", self.enter("input()"))

    def test_standard_error(self) -> None:
        """What is written to standard error is shown as well."""
        self.assertEqual(self.enter("import sys; n = sys.stderr.write('oh\\n')"), "oh\n")

    def test_run(self) -> None:
        """A whole piece of source shows each value, and says whether it ran to its end."""
        self.assertEqual(self.console.run("a = 1\nfor i in range(2):\n    a += i\na\na + 1"), 0)
        self.assertEqual("".join(self.written), "2\n3\n")
        self.assertEqual(self.console.run("1 / 0"), 1)
        self.assertEqual(self.console.run("1 +* 2"), 1)

    def test_control_characters(self) -> None:
        """What would control a terminal is escaped."""
        self.assertEqual(self.enter(r"print('\x1b]0;x\x07 \u202e\ttab')"), "\\x1b]0;x\\x07 \\u202e\ttab\n")

    def test_lone_surrogates(self) -> None:
        """What has no bytes in UTF-8 is escaped."""
        self.assertEqual(self.enter(r"print('\udcff')"), "\\udcff\n")


class DeferredTests(ConsoleCase):
    """Values that come later."""

    def test_fires_later(self) -> None:
        """What a Deferred fires with is shown when it does; and C{_} is it."""
        self.assertEqual(self.enter("deferred"), "<Deferred #0, which has not fired>\n")
        self.names["deferred"].callback(42)
        self.assertEqual(self.later, ["Deferred #0: 42\n"])
        self.assertEqual(self.enter("_"), "42\n")

    def test_shown_twice(self) -> None:
        """One that is shown twice has one number, and fires once."""
        self.enter("deferred", "deferred")
        self.assertEqual("".join(self.written), "<Deferred #0, which has not fired>\n" * 2)
        self.names["deferred"].callback(42)
        self.assertEqual(self.later, ["Deferred #0: 42\n"])

    def test_fired_already(self) -> None:
        """What one has fired with is shown at once."""
        self.names["deferred"].callback(42)
        self.assertEqual(self.enter("print('a'); deferred"), "a\nDeferred #0: 42\n")

    def test_failure(self) -> None:
        """A failure is shown, and passed on to whoever comes next."""
        self.enter("deferred")
        self.names["deferred"].errback(ValueError("oh " + PASSWORD))
        self.assertEqual(self.later, [f"Deferred #0: failed with ValueError: oh {HIDDEN}\n"])
        self.failureResultOf(self.names["deferred"], ValueError)

    def test_closed(self) -> None:
        """A console that was closed writes nothing."""
        self.enter("deferred")
        self.console.close()
        self.names["deferred"].callback(42)
        self.assertEqual(self.later, [])

    def test_idle(self) -> None:
        """It is known when all that were shown have fired."""
        self.successResultOf(self.console.when_idle())
        self.enter("deferred")
        idle = self.console.when_idle()
        self.assertNoResult(idle)
        self.names["deferred"].callback(42)
        self.successResultOf(idle)


class BoundTests(ConsoleCase):
    """What one line may do to the daemon."""

    def test_output(self) -> None:
        """What one line prints is bounded, and how much more there was is said."""
        text = self.enter("for i in range(100): print('x' * 1023)", "")
        self.assertTrue(text.endswith("[36864 more characters were cut off]\n"), text[-100:])
        self.assertLess(len(text), MAX_OUTPUT_CHARACTERS + 100)

    def test_error_after_output(self) -> None:
        """An error is shown, however much was printed before."""
        text = self.enter("print('x' * 100_000); 1 / 0")
        self.assertTrue(text.endswith("ZeroDivisionError: division by zero\n"), text[-100:])

    def test_secret_at_the_cut(self) -> None:
        """A secret at the end of what is shown is hidden whole."""
        for before in range(MAX_OUTPUT_CHARACTERS - len(PASSWORD), MAX_OUTPUT_CHARACTERS + 1):
            text = self.enter(f"print('x' * {before} + password + 'y' * 1000)")
            self.assertNotIn("hunter", text)

    def test_loops(self) -> None:
        """A line that doesn't end is interrupted, and the next one is run."""
        self.limit.uninstall()
        limit = TimeLimit(0.05)
        limit.install()
        self.addCleanup(limit.uninstall)
        self.console = self.make(limit)
        for line in (
            "while True: pass",
            "import time; time.sleep(60)",
            "while True:\n    try: print('x')\n    except Exception: pass",
            "sum(number for number in range(10**12))",
            "class A:\n    def __repr__(self):\n        while True: pass\n\nA()\n",
        ):
            self.written.clear()
            began = time.monotonic()
            self.assertEqual(self.console.run(line), 1, line)
            self.assertLess(time.monotonic() - began, 20.0, line)
            self.assertIn("\nTakesTooLong: interrupted after 0.05 s", "".join(self.written))
            self.assertNotIn("time_limit", "".join(self.written))
        # On a busy machine, it may take longer than that.
        limit.seconds = 60.0
        self.assertEqual(self.enter("1"), "1\n")

    def test_repr_of_a_result(self) -> None:
        """The repr of what a Deferred fires with is interrupted, too."""

        class Endless:
            def __repr__(self) -> str:
                while True:
                    pass

        self.enter("deferred")
        self.limit.seconds = 0.05
        self.names["deferred"].callback(Endless())
        self.assertEqual(
            self.later, ["Deferred #0: fired with a Endless that can't be shown: TakesTooLong\n"]
        )

    def test_long_source(self) -> None:
        """Source that is too long is refused."""
        self.assertIn("longer than 65536 characters", self.enter("x = '" + "x" * 70_000 + "'"))
        self.assertEqual(self.console.run("#" * 70_000), 1)


class TimeLimitTests(unittest.SynchronousTestCase):
    """L{TimeLimit}."""

    def setUp(self) -> None:
        """One of 0.02 seconds."""
        self.limit = TimeLimit(0.02)
        self.limit.install()
        self.addCleanup(self.limit.uninstall)

    def test_returns(self) -> None:
        """What a function returns is returned, and what it raises is raised."""
        self.limit.seconds = 60.0
        self.assertEqual(self.limit.run(divmod, 7, 2), (3, 1))
        self.assertRaises(ZeroDivisionError, self.limit.run, divmod, 7, 0)

    def test_disarmed(self) -> None:
        """Nothing is interrupted after a function."""
        self.assertRaises(TakesTooLong, self.limit.run, time.sleep, 60)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        # On a busy machine, anything may take longer than the limit of the others.
        self.limit.seconds = 60.0
        self.limit.run(int)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))

    def test_within(self) -> None:
        """A function that is called within another has the other's time."""
        self.assertRaises(TakesTooLong, self.limit.run, self.limit.run, time.sleep, 60)

    def test_many(self) -> None:
        """However close to the limit a function ends, nothing is interrupted after it."""
        limit = TimeLimit(0.001)
        self.limit.uninstall()
        limit.install()
        self.addCleanup(limit.uninstall)
        for step in range(300):
            until = time.monotonic() + 0.0009 + step * 1e-6

            def spin(until: float = until) -> None:
                while time.monotonic() < until:
                    pass

            try:
                limit.run(spin)
            except TakesTooLong:
                pass

    def test_not_installed(self) -> None:
        """Without SIGALRM it just runs functions."""
        self.limit.uninstall()
        self.limit.run(time.sleep, 0.05)


class MaskingTests(unittest.SynchronousTestCase):
    """Settings without secrets, and texts without secrets."""

    settings = Settings(sections=(RedisSettings(auth=Secret(PASSWORD), host="redis.example"),))

    def test_masked_settings(self) -> None:
        """Settings that are masked hold no secret, and all else."""
        shown = masked(self.settings)
        redis = shown.named("redis")
        self.assertEqual(redis.host, "redis.example")
        self.assertEqual(repr(redis.auth), HIDDEN)
        self.assertRaises(PermissionError, redis.auth.reveal)
        self.assertEqual(list(secrets_in(shown)), [])
        self.assertEqual(self.settings.section(RedisSettings).auth, Secret(PASSWORD))

    def test_cost(self) -> None:
        """To mask them takes little time: it is done for each session, while captures go on."""
        settings = Settings(sections=self.settings.sections * 30)
        self.assertTrue(takes_less(0.2, lambda: [masked(settings) for _ in range(50)]))

    def test_secrets_in(self) -> None:
        """Every secret of the settings is found."""
        self.assertEqual(list(secrets_in(self.settings)), [PASSWORD])
        self.assertEqual(list(secrets_in(({"a": [Secret("x")]}, Secret("y")))), ["x", "y"])

    def test_forms(self) -> None:
        """A secret is hidden as it is, and as Python, JSON and URLs spell it."""
        import json
        from urllib.parse import quote, quote_plus

        mask = Mask([PASSWORD, "b"])
        for spelled in (
            PASSWORD,
            repr(PASSWORD),
            ascii(PASSWORD),
            repr(PASSWORD.encode()),
            repr([PASSWORD, {"a": PASSWORD}]),
            repr(repr(PASSWORD)),
            json.dumps({"k": PASSWORD}),
            json.dumps({"k": PASSWORD}, ensure_ascii=False),
            quote(PASSWORD),
            quote(PASSWORD, safe=""),
            quote_plus(PASSWORD),
            quote(PASSWORD).replace("%2", "%2").lower(),
        ):
            self.assertNotIn("unter2", mask(spelled), spelled)

    def test_short_secrets(self) -> None:
        """A secret of fewer than 8 characters is only hidden as a whole word."""
        mask = Mask(["t", "io"])
        for text, expected in (
            ("Connection timed out", "Connection timed out"),
            ("token='t', auth: io", f"token='{HIDDEN}', auth: {HIDDEN}"),
            (repr("\nt"), repr("\n")[:-1] + HIDDEN + "'"),
        ):
            self.assertEqual(mask(text), expected)

    def test_limit(self) -> None:
        """What was taken apart or encoded otherwise is not recognized: documented, as nothing could."""
        mask = Mask(["hunter2"])
        self.assertEqual(mask("h unter2"), "h unter2")
        self.assertEqual(b64decode(mask("aHVudGVyMg==")), b"hunter2")

    def test_no_secrets(self) -> None:
        """Without secrets nothing is changed."""
        self.assertEqual(Mask([])("text"), "text")
        self.assertEqual(Mask([""])("text"), "text")
