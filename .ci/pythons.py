"""Runs the tests of core and eventlog on every newer CPython of this machine, each in an environment of its own.

Found are `python3.12` to `python3.14` on the PATH and pyenv's versions. Prints which ran; none found is no failure.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTED = ((3, 12), (3, 13), (3, 14))


def _candidates() -> Iterator[str]:
    for major, minor in TESTED:
        if path := shutil.which(f"python{major}.{minor}"):
            yield path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from (str(path) for path in sorted(pyenv.glob("3.*/bin/python")))


def find_pythons() -> dict[tuple[int, int], str]:
    """Return one working CPython for each newer version that this machine has."""
    found: dict[tuple[int, int], str] = {}
    ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    for path in _candidates():
        # A pyenv shim for a version that is not chosen exists and fails: only an answer counts.
        answer = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            name, major, minor = answer.stdout.split()
            version = int(major), int(minor)
            if name == "cpython" and version in TESTED and version != sys.version_info[:2]:
                found.setdefault(version, path)
    return found


def run_tests(version: tuple[int, int], python: str) -> int:
    """Set up `.venv-3.x`, run the tests in it, and note that they ran."""
    name = f"{version[0]}.{version[1]}"
    venv = ROOT / f".venv-{name}"
    if not (venv / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
    install = [str(venv / "bin" / "pip"), "install", "-q", "-c", "constraints.txt"]
    subprocess.run([*install, "-e", ".[dev]", "-r", "tests/requirements.txt"], cwd=ROOT, check=True)
    print(f"== core and eventlog on CPython {name}", flush=True)
    command = [str(venv / "bin" / "pytest"), "-q", "-n", "2", "--dist", "loadscope", "-m", "not long"]
    result = subprocess.run([*command, "tests/core", "tests/engine", "tests/eventlog"], cwd=ROOT, check=False)
    if result.returncode == 0:
        note(name)
    return result.returncode


def note(version: str) -> None:
    """Add this Python to what the last line of the check names."""
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / "ran.jsonl").open("a") as ran:
        ran.write(json.dumps({"kind": "python", "name": version}) + "\n")


def main() -> int:
    """Run all of them, also after a failure; the exit code is that of the worst."""
    note(f"{sys.version_info[0]}.{sys.version_info[1]}")
    found = find_pythons()
    codes = {version: run_tests(version, python) for version, python in sorted(found.items())}
    names = ", ".join(f"{major}.{minor}" for major, minor in codes) or "none newer found"
    print(f"core and eventlog ran on CPython: {names}")
    return max(codes.values(), default=0)


if __name__ == "__main__":
    sys.exit(main())
