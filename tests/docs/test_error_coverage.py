"""No error class without a test that raises it through the public API and asserts its whole text.

Such a test wears `@pytest.mark.raises_error("TheClass")`: its name, since pytest takes a mark of one class for a
decorator of it. Which tests do is read from the source of all of them, so that this one does not depend on which were
chosen to run.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from refold import connectors, core, eventlog
from refold.core import RefoldError

ROOT = Path(__file__).parents[2]


def _subclasses(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _all_errors() -> set[str]:
    for package in (core, connectors, eventlog):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return {cls.__name__ for cls in _subclasses(RefoldError) if cls.__module__.startswith("refold.")}


def _bases() -> set[str]:
    """The classes that are there to be caught: what is raised are those below them."""
    return {cls.__name__ for cls in _subclasses(RefoldError) if cls.__subclasses__()}


def _asserted() -> set[str]:
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.raises_error"):
                names |= {ast.unparse(arg).strip("'").split(".")[-1] for arg in node.args}
    return names


def test_every_error_has_a_test_that_asserts_its_whole_text() -> None:
    missing = _all_errors() - _bases() - _asserted()
    assert sorted(missing) == []


def test_the_page_about_errors_names_every_one_of_them() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert sorted(name for name in _all_errors() if f"`{name}`" not in page) == []
