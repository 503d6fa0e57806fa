"""Every code block of the README and of docs/ runs, in order, as a reader would type it."""

from pathlib import Path

import pytest

from fixtures.pages import READ, RUN, Page, blocks_of, commands_of, matches

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
# It starts from `pip install`, so it has a test of its own that does: test_first_ten_minutes.py.
TESTED_ELSEWHERE = {ROOT / "docs" / "first-ten-minutes.md"}


def _has_code(page: Path) -> bool:
    return page not in TESTED_ELSEWHERE and any(block.language in RUN for block in blocks_of(page))


def _installed(command: str) -> str | None:
    # The package under test is installed already.
    return "true" if command.startswith("pip install") else None


# One of them runs the conformance kit.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _has_code(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, database_url: str) -> None:
    # A project of its own, so that `.refold/` is not looked for further up.
    (tmp_path / "pyproject.toml").touch()
    Page(tmp_path, {"REFOLD_DATABASE_URL": database_url}, instead=_installed).run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_says_what_language_it_is(page: Path) -> None:
    unknown = [
        f"{block}: {block.language!r}" for block in blocks_of(page) if block.language not in RUN + READ
    ]
    unlabelled = [str(block) for block in blocks_of(page) if not block.language]
    assert unknown + unlabelled == []


def test_output_with_dots_matches_any_text_and_nothing_else_does() -> None:
    shown = ["took ... s", "done"]
    assert matches(shown, "took 1.5 s\n  done\n")
    assert not matches(shown, "took 1.5 s\nfailed\n")
    assert not matches(shown, "took 1.5 s\ndone\nand more")
    assert matches(shown, "took 1.5 s\ndone\nand more", whole=False)


def test_a_console_block_is_read_as_commands_with_their_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ one\nout\n$ two\n^C\nlast words\n```\n\n```console\n^C\n```\n")
    first, second = blocks_of(page)
    one, two = commands_of(first)
    assert (one.text, one.expected, one.interrupted) == ("one", ["out"], False)
    assert (two.text, two.interrupted, two.after_interrupt) == ("two", True, ["last words"])
    (ctrl_c,) = commands_of(second)
    assert (ctrl_c.text, ctrl_c.interrupted) == ("", True)
