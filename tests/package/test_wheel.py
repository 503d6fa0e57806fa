"""The links under src/refold become ordinary packages in a wheel and in an sdist."""

import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _shipped() -> set[str]:
    files = {"refold/__init__.py", "refold/py.typed"}
    for floor in ("core", "connectors", "eventlog", "testing"):
        for path in (ROOT / floor).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(f"refold/{path.relative_to(ROOT)}")
    return files


def test_the_wheel_carries_all_floors_with_sql_and_templates_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == _shipped()


def test_the_sdist_carries_all_floors(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2].removeprefix("src/") for name in archive.getnames()}
    assert _shipped() <= names


def test_the_wheel_names_its_licence_entry_points_and_typed_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(points).decode()
        metadata = archive.read(points.replace("entry_points.txt", "METADATA")).decode()
    assert "refold = refold.core.cli:main" in text
    assert "License-Expression: Apache-2.0" in metadata
    assert {f"Provides-Extra: {extra}" for extra in ("cron", "dev", "embedded", "kafka")} <= set(
        metadata.splitlines()
    )
