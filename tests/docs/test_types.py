"""What the documentation shows, `init` writes and the examples hold passes mypy --strict as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.pages import Page, blocks_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _files(folder: Path) -> list[Path]:
    """Lay out the pages' files, each page's in a folder of its own, and the template of `init` beside them."""
    laid = []
    for page in PAGES:
        reader = Page(folder / page.stem, {})
        for block in blocks_of(page):
            if block.language == "python" and (name := reader.file_name(block)):
                path = folder / page.stem / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
                laid.append(path)
    template = (ROOT / "core" / "cli" / "templates" / "shop.py.txt").read_text()
    (folder / "init").mkdir()
    (folder / "init" / "shop.py").write_text(template)
    # A page that grows a file shows it more than once.
    return [*dict.fromkeys(laid), folder / "init" / "shop.py"]


def test_what_a_reader_copies_is_typed(tmp_path: Path) -> None:
    mypy = Path(sys.executable).parent / "mypy"
    if not mypy.exists():
        pytest.skip("mypy is not installed here; make check has it")
    by_folder: dict[Path, list[Path]] = {}
    for path in _files(tmp_path):
        by_folder.setdefault(path.parent, []).append(path)
    assert by_folder
    for folder, paths in by_folder.items():
        done = subprocess.run(
            [mypy, "--strict", "--cache-dir", str(ROOT / ".mypy_cache" / "docs"), *map(str, paths)],
            cwd=folder,
            env={**os.environ, "MYPYPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
