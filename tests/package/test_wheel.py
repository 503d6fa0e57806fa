"""The links under src/refold become ordinary packages in a wheel and in an sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of what git knows and what is new."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]
    subprocess.run(
        ["tar", "-cf", "-", "--no-recursion", "--null", "-T", "-"],
        cwd=ROOT,
        input="\0".join(names).encode(),
        stdout=(source / "all.tar").open("wb"),
        check=True,
    )
    subprocess.run(["tar", "-xf", "all.tar"], cwd=source, check=True)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _shipped() -> set[str]:
    files = {"refold/__init__.py", "refold/py.typed"}
    for floor in ("core", "connectors", "eventlog"):
        for path in (ROOT / floor).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(f"refold/{path.relative_to(ROOT)}")
    return files


def test_the_wheel_carries_all_three_floors_with_sql_and_templates_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == _shipped()


def test_the_sdist_carries_all_three_floors(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2].removeprefix("src/") for name in archive.getnames()}
    assert _shipped() <= names


def test_the_wheel_names_its_licence_entry_points_and_typed_marker(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(points).decode()
        metadata = archive.read(points.replace("entry_points.txt", "METADATA")).decode()
    assert "refold = refold.core.cli:main" in text
    assert "License-Expression: Apache-2.0" in metadata
    assert {f"Provides-Extra: {extra}" for extra in ("dev", "embedded", "kafka")} <= set(
        metadata.splitlines()
    )
    assert metadata.count("Provides-Extra") == 3
