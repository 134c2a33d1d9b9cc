"""The structure of the code is as DESIGN.md says, and modules and functions fit one sitting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from twisted.trial import unittest

from tests.unit.documents import ROOT

#: Lines.
MODULE, FUNCTION = 500, 60

DESIGN = (ROOT / "DESIGN.md").read_text()
PACKAGE = ROOT / "pcapsvc"


def modules() -> dict[str, str]:
    """The text of every module of this project, by its path."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for part in ("pcapsvc", "tests", "peers", "benchmarks", "scripts")
        for path in sorted((ROOT / part).rglob("*.py"))
    }


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements within another, or in a module; expressions hold no functions."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, part, ()):
            yield inner
            yield from statements(inner)


class SizeTests(unittest.SynchronousTestCase):
    """How long modules and functions are."""

    def test_modules(self) -> None:
        """No module is longer than 500 lines."""
        counts = {path: text.count("\n") for path, text in modules().items()}
        self.assertGreater(len(counts), 100)
        self.assertEqual({path: count for path, count in counts.items() if count > MODULE}, {})

    def test_functions(self) -> None:
        """No function is longer than 60 lines, its docstring included; no C{__init__.py} defines anything."""
        long, misplaced = {}, []
        for path, text in modules().items():
            for node in statements(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    if length > FUNCTION:
                        long[f"{path}: {node.name}"] = length
                    if path.endswith("/__init__.py"):
                        misplaced.append(f"{path}: {node.name}")
        self.assertEqual((long, misplaced), ({}, []))


class TestsTests(unittest.SynchronousTestCase):
    """How the tests themselves are built."""

    def test_hypothesis(self) -> None:
        """Only one module imports Hypothesis at its top, and sets it up: L{tests.examples}."""
        importing = {
            path for path, text in modules().items() if re.search(r"(?m)^(from|import) hypothesis", text)
        }
        self.assertEqual(importing, {"tests/examples.py"})


class DesignTests(unittest.SynchronousTestCase):
    """DESIGN.md names what exists, and all of it."""

    def test_files(self) -> None:
        """Every file that it names exists, except for those of planned features."""
        text = re.sub(r"(?ms)^Where the planned features will live:\n\n.*?\n\n", "", DESIGN)
        self.assertNotEqual(text, DESIGN)
        named = {name for name in re.findall(r"`([\w./-]+)`", text) if re.search(r".(/|\.py)", name)}
        # In any component's directory; and in a spool.
        named -= {"settings.py", "options.py", "publisher.py", "broken/"}
        self.assertGreater(len(named), 20)
        missing = [
            name for name in sorted(named) if not (PACKAGE / name).exists() and not (ROOT / name).exists()
        ]
        self.assertEqual(missing, [])

    def test_overview(self) -> None:
        """Its overview has every module and directory of the package."""
        [overview] = re.findall(r"(?ms)^## Where things are\n(.*?)^Imports run one way", DESIGN)
        for path in sorted(PACKAGE.iterdir()):
            if path.name.startswith("__") or not (path.is_dir() or path.suffix == ".py"):
                continue
            name = f"{path.name}/" if path.is_dir() else path.name
            self.assertRegex(overview, rf"[ /]{re.escape(name)}")
