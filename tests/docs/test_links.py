"""Every link of a page to another file of this repository leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    broken = [target for target, _ in _LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert broken == []


def test_the_texts_of_errors_name_pages_that_exist() -> None:
    named = set()
    for floor in ("core", "connectors", "eventlog", "testing"):
        for path in (ROOT / floor).rglob("*.py"):
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
