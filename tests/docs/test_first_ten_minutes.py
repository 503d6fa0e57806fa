"""docs/first-ten-minutes.md, word for word: from a built wheel, in an empty folder, in an environment of its own."""

import os
import shlex
import venv
from pathlib import Path

import pytest

from fixtures.pages import Page
from fixtures.terminal import remove_embedded_data

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(420)
def test_the_first_ten_minutes_are_as_the_page_says(wheel: Path, tmp_path: Path) -> None:
    empty = tmp_path / "somewhere new"  # a space in the path is a fact of life
    empty.mkdir()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    clean = {name: "" for name in os.environ if name.startswith("REFOLD_")}

    def with_our_wheel(command: str) -> str | None:
        if command.startswith("pip install 'refold"):
            what = shlex.quote(f"refold[dev] @ {wheel.as_uri()}")
            return f"pip install -q -c {shlex.quote(str(ROOT / 'constraints.txt'))} {what}"
        return None

    page = Page(empty, clean, python=str(python), instead=with_our_wheel)
    try:
        page.run(ROOT / "docs" / "first-ten-minutes.md")
    finally:
        remove_embedded_data(empty)

    assert page.typed[:2] == ["pip install 'refold[dev]'", "refold init shop && refold dev shop/shop.py"]
    assert len(page.stop_seconds) == 2
    assert all(seconds < 3 for seconds in page.stop_seconds), page.stop_seconds
