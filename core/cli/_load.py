"""Finds the App in the user's file, and says exactly what is wrong when it can't.

`shop.py`, `shop.py:app` and `package.module:app` name an App. The file's folder (of a package: the folder that
holds the package) goes to the front of `sys.path`, as `python shop.py` would do, so that the module has the name
under which the rest of the user's code imports it: an error class recorded by one process is found by another.
"""

import difflib
import importlib
import re
import sys
import sysconfig
import traceback
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType
from typing import Final

from refold.core import App, RefoldError
from refold.core.cli._output import Wrong

# A requirement in the package's metadata: `slack-bolt>=1.21; extra == "slack"`.
_OF_AN_EXTRA: Final = re.compile(r"""(?P<package>[\w-]+)[^;]*;\s*extra\s*==\s*["'](?P<extra>\w+)["']""")


def load_app(target: str) -> App:
    """Return the one App that `target` names. Every way to fail is a `Wrong` that says what to type instead."""
    place, _, attribute = target.partition(":")
    module = _import_file(place) if _is_file_name(place) else _import_module(place)
    found = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    if attribute:
        return _named(found, module, place, attribute)
    distinct = {id(value): value for value in found.values()}
    if not distinct:
        raise Wrong(
            f'{place} has no App\nexpected a line like:  app = refold.App("{Path(place).stem}")\n'
            f"at the top level of the file, above the workflows"
        )
    if len(distinct) > 1:
        first = next(iter(found))
        raise Wrong(
            f"{place} has {len(distinct)} Apps: {', '.join(found)}\n"
            f"expected one, or to be told which:  {place}:{first}"
        )
    return next(iter(distinct.values()))


def _named(found: dict[str, App], module: ModuleType, place: str, attribute: str) -> App:
    if attribute in found:
        return found[attribute]
    if hasattr(module, attribute):
        what = type(getattr(module, attribute)).__name__
        raise Wrong(f"{attribute} in {place} is a {what}, not an App\n{_the_apps(found)}")
    raise Wrong(f"{place} has nothing called {attribute}\n{_the_apps(found)}")


def _the_apps(found: dict[str, App]) -> str:
    return f"Apps in it: {', '.join(found) or 'none'}"


def _is_file_name(place: str) -> bool:
    return place.endswith(".py") or "/" in place or Path(place).exists()


def _import_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.exists():
        raise Wrong(f"no such file: {place}\nlooked in {path.parent}\n{_suggestion(path)}")
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.py"))[:5]) or "no Python files"
        raise Wrong(f"{place} is a folder, not a file with an App\nin it: {inside}")
    folder, name = path.parent, path.stem
    while (folder / "__init__.py").exists():
        folder, name = folder.parent, f"{folder.name}.{name}"
    sys.path.insert(0, str(folder))
    module = _import(name, place)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise Wrong(
            f"{place} has the name of another module: {name} ({getattr(module, '__file__', 'built in')})\n"
            "Python would import that one instead. Rename the file."
        )
    return module


def _suggestion(path: Path) -> str:
    here = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, here, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"Python files there: {', '.join(here[:5]) or 'none'}. A new one:  refold init shop"


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    return _import(name, name)


def _import(name: str, place: str) -> ModuleType:
    """Import a module of the user's; an exception in it is shown with their line, not with ours."""
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise Wrong(
            f"{place} is not valid Python: {error.msg}\n"
            f"{_shown(error.filename)}, line {error.lineno}:  {(error.text or '').strip()}"
        ) from error
    except ModuleNotFoundError as error:
        if error.name == name or name.startswith(f"{error.name}."):
            raise Wrong(
                f"no module called {error.name}\nexpected a file or a module, like:  shop.py  or  shop.main:app"
            ) from error
        raise _their_line(place, error, _extra_with(error.name)) from error
    except Exception as error:
        raise _their_line(place, error) from error


def _extra_with(module: str | None) -> str:
    """Return the line that installs a missing module, where it belongs to a package that one of the extras brings."""
    missing = (module or "").partition(".")[0]
    for requirement in requires("refold") or []:
        found = _OF_AN_EXTRA.match(requirement)
        if found is not None and found["package"].replace("-", "_") == missing:
            return f"\nIt comes with an extra:  pip install 'refold[{found['extra']}]'"
    return ""


def _their_line(place: str, error: Exception, hint: str = "") -> Wrong:
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if _is_users(frame.filename)]
    where = ""
    if theirs:
        line = f":  {theirs[-1].line}" if theirs[-1].line else ""
        where = f"\n{_shown(theirs[-1].filename)}, line {theirs[-1].lineno}{line}"
    first, *rest = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, RefoldError) else f"{type(error).__name__}: "
    more = "".join(f"\n{text}" for text in rest[:3])
    hint = hint or ("\nThe whole traceback: --debug" if kind else "")
    return Wrong(f"{place} could not be imported: {kind}{first}{more}{where}{hint}")


def _is_users(filename: str) -> bool:
    """Say whether a frame is the user's own code: not refold's, not Python's, not an installed package's."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    floors = Path(__file__).resolve().parents[2]
    others = [floors / floor for floor in ("core", "connectors", "eventlog")]
    others.append(Path(sysconfig.get_path("stdlib")).resolve())
    return "site-packages" not in path.parts and not any(path.is_relative_to(other) for other in others)


def _shown(filename: str | None) -> str:
    if filename is None:
        return "?"
    path = Path(filename)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
