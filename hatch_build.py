"""Adds to the wheel what is made from the parser of pcapctl: its man page, and its completion in shells."""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DocumentationHook(BuildHookInterface[Any]):
    """Installed where shells and C{man} look, below the prefix of the environment."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the files, and have them added."""
        sys.path.insert(0, self.root)
        try:
            from pcapsvc.client.completion import PATHS, completion_script
            from pcapsvc.client.manual import manual_page
        finally:
            sys.path.remove(self.root)
        # The same build has the same date (https://reproducible-builds.org/specs/source-date-epoch/).
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        today = datetime.datetime.now(datetime.UTC)
        date = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else today
        texts = {path: completion_script(shell) for shell, path in PATHS.items()}
        texts["share/man/man1/pcapctl.1"] = manual_page(date.date())
        self._temporary = tempfile.TemporaryDirectory(prefix="pcapsvc-build-")
        for path, text in texts.items():
            file = Path(self._temporary.name, path.replace("/", "_"))
            file.write_text(text)
            build_data["shared_data"][str(file)] = path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove them: they are in the wheel."""
        self._temporary.cleanup()
