"""Imports point down: connectors and testing -> core -> eventlog, also inside functions and under TYPE_CHECKING."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("eventlog", "core", "connectors", "testing")
# The connector that a module of connectors/ belongs to; `_cli` holds what the command line adds and may know all.
CONNECTOR_OF = {"_devbroker": "kafka", "_devbrokers": "kafka"}
MAY_KNOW_ALL = {"__init__", "_cli"}
SHARED = {"http"}  # knows no connector, and every one may know it


def _files(floor: str) -> Iterator[Path]:
    yield from sorted((ROOT / floor).rglob("*.py"))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in the file: `from refold.core import App` gives refold.core."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            yield node.lineno, module
            if module in ("refold", "refold.core", "refold.connectors", "refold.eventlog"):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            constants = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, str(value)) for value in constants)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_floors_below_it(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _files(floor)
        for line, name in _imports(path)
        if any(name == f"refold.{other}" or name.startswith(f"refold.{other}.") for other in above)
    ]
    assert wrong == []


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_the_public_face_or_itself_by_its_folder_name(floor: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _files(floor)
        for line, name in _imports(path)
        if name == "refold"
        or name.split(".")[0] in FLOORS
        or name.split(".")[0] in ("tests", "examples", "bench")
    ]
    assert wrong == []


def test_connectors_use_only_public_names_of_core() -> None:
    wrong = []
    for path in _files("connectors"):
        for line, name in _imports(path):
            private = re.match(r"refold\.core\.(.*\.)?_", name) is not None
            if private or name.startswith("refold.eventlog") or name.split(".")[0] == "psycopg":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_the_kit_for_connectors_uses_only_public_names_and_knows_no_connector() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _files("testing")
        for line, name in _imports(path)
        if re.match(r"refold\.(core|eventlog)\.(.*\.)?_", name)
        or name.startswith("refold.connectors")
        or name.split(".")[0] == "pytest"
    ]
    assert wrong == []


def test_connectors_do_not_know_one_another() -> None:
    wrong = []
    for path in _files("connectors"):
        own = _connector(path.relative_to(ROOT / "connectors").parts[0].removesuffix(".py"))
        if own in MAY_KNOW_ALL:
            continue
        for line, name in _imports(path):
            if name.startswith("refold.connectors."):
                other = _connector(name.split(".")[2])
                if other != own and other not in SHARED:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def _connector(module: str) -> str:
    if module in MAY_KNOW_ALL:
        return module
    return CONNECTOR_OF.get(module, module.lstrip("_").split("_")[0])


def test_nothing_is_imported_under_its_folder_name() -> None:
    # With the repository root on sys.path, `core.x` and `refold.core.x` would be two modules with two registries.
    assert not {"core", "connectors", "eventlog"} & set(sys.modules)


def test_import_linter_finds_no_broken_contract() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    if not program.exists():
        pytest.skip("import-linter is not installed here; make check runs it")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
