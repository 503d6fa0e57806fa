"""Finding a harness by its place: in the kit's own process, and again in each worker process."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Final

from refold.testing._harness import Harness

_PREFIX: Final = "refold_harness_"


def load_harness(place: str) -> type[Harness]:
    """Return the harness at `place`: a Python file, and after a colon its class if there are several.

    Raises ValueError, with what was found, when there is none to choose.
    """
    file, _, name = place.partition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"no file {file}; expected a Python file with a Harness in it, like:  harness.py")
    found = _harnesses(path)
    if name:
        if name not in found:
            raise ValueError(
                f"{file} has no Harness called {name}; it has: {', '.join(sorted(found)) or 'none'}"
            )
        return found[name]
    if len(found) != 1:
        raise ValueError(
            f"{file} has {len(found)} harnesses, and one is expected; say which:  {file}:{next(iter(found), 'NAME')}"
        )
    return next(iter(found.values()))


def place_of(harness: type[Harness]) -> str:
    """Return the place of a harness class, from which another process can load it."""
    file = inspect.getsourcefile(harness)
    if file is None or "." in harness.__qualname__:
        raise ValueError(
            f"{harness.__qualname__} is not at the top of a file, so worker processes can't import it"
        )
    return f"{Path(file).resolve()}:{harness.__name__}"


def _harnesses(path: Path) -> dict[str, type[Harness]]:
    name = f"{_PREFIX}{path.stem}"
    module = sys.modules.get(name)
    if module is None or getattr(module, "__file__", None) != str(path):
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Harness) and value.__module__ == name
    }


__all__ = ["load_harness", "place_of"]
