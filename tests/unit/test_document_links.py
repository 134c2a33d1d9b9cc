"""The links within the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"(?m)^#+ (.*)$")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a document."""
    headings = _HEADING.findall(document.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> Iterator[str]:
    """The links of a document to files or headings that don't exist."""
    for file, anchor in _LINK.findall(document.read_text()):
        target = document.parent / file if file else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{document.name}: {file}#{anchor}"


class LinkTests(SynchronousTestCase):
    """Links to files and headings."""

    def test_links(self) -> None:
        """Each leads somewhere."""
        documents = [*_ROOT.glob("*.md"), *_ROOT.glob("docs/*.md")]
        self.assertGreater(len(documents), 5)
        self.assertEqual([link for document in documents for link in broken_links(document)], [])
