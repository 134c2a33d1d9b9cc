"""What tests of pcapctl's options share: a configuration of their own."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from pcapsvc.client.connections import Connections
from pcapsvc.client.main import main, parser
from pcapsvc.client.requesting import request_fields
from pcapsvc.core.mask import of_process


class OptionsTestCase(unittest.SynchronousTestCase):
    """A configuration of its own."""

    def setUp(self) -> None:
        """A directory for the configuration."""
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.environment = {"XDG_CONFIG_HOME": str(self.home), "HOME": "/nonexistent"}
        self.addCleanup(of_process.hide, ())

    def configure(self, text: str) -> None:
        """Write the configuration."""
        (self.home / "pcapctl.toml").write_text(text)

    def file(self, text: str) -> str:
        """A file with this text."""
        path = self.home / "a file"
        path.write_text(text)
        return str(path)

    def connections(self, *words: str) -> Connections:
        """The connections of C{pcapctl capture} with these options."""
        return Connections(parser().parse_args(["capture", *words]), self.environment)

    def fields(self, *words: str, defaults: dict[str, Any] | None = None) -> dict[str, Any]:
        """The fields of the request of C{pcapctl capture} with these options."""
        return request_fields(parser().parse_args(["capture", *words]), defaults or {}, self.environment)

    def run_main(self, *words: str) -> tuple[int, str]:
        """Run pcapctl: its status, and what it writes to standard error."""
        errors = io.StringIO()
        self.patch(os, "environ", {**os.environ, **self.environment})
        with contextlib.redirect_stderr(errors):
            try:
                status = main(words)
            except SystemExit as exited:
                status = int(exited.code or 0)
        return status, errors.getvalue()
