"""Breaking a copy of the repository, and watching a test notice."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutants.breakages import DoesNotApply, Mutant

ROOT: Final = Path(__file__).parents[2]
# Left out of a copy: environments, caches, what git keeps; and what no test reads.
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "results")
_IMPORTS: Final = """
import refold, refold.core, refold.core.cli, refold.eventlog, refold.connectors.kafka, refold.connectors._cli
print(refold.__file__)
"""
# A test that hangs fails by an exception, so that the run still writes down which one it was.
_PYTEST: Final = (
    "-q",
    "-x",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "--hypothesis-seed=0",
    "--timeout-method=signal",
    "--tb=short",
)
_LONGEST: Final = 180  # seconds, and a minute more for each test


class CannotJudge(Exception):
    """The mutant says nothing about the tests: it does not apply, does not import, or its tests fail without it."""


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant. `caught_by` is None when it survived; `seen` is what the tests said."""

    mutant: Mutant
    caught_by: str | None
    seconds: float
    seen: str = ""


class Workshop:
    """A folder with an unbroken copy of the repository, in which others are made and broken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clean = folder / "clean"
        shutil.copytree(ROOT, self.clean, symlinks=True, ignore=_LEFT_OUT)

    def check_clean(self, mutants: Sequence[Mutant]) -> float:
        """Run the tests of `mutants` on the unbroken copy; returns the seconds. Raises CannotJudge if one is red."""
        began = time.monotonic()
        failures = list(
            self._failures(self.clean, sorted({test for mutant in mutants for test in mutant.tests}))
        )
        if failures:
            raise CannotJudge(
                "without any mutant:\n" + "\n".join(f"{test}\n{_indented(text)}" for test, text in failures)
            )
        return time.monotonic() - began

    def judge(self, mutant: Mutant) -> Verdict:
        """Break a fresh copy with `mutant` and run its tests. Raises CannotJudge."""
        began = time.monotonic()
        copy = self._folder / re.sub(r"\W+", "-", mutant.name)
        shutil.copytree(self.clean, copy, symlinks=True, ignore=_LEFT_OUT)
        try:
            try:
                mutant.apply(copy)
            except DoesNotApply as exc:
                raise CannotJudge(str(exc)) from exc
            failures = list(self._failures(copy, mutant.tests))
        finally:
            shutil.rmtree(copy)
        took = time.monotonic() - began
        for test, text in failures:
            if said := re.search(f".*({mutant.because}).*", text):
                return Verdict(mutant, test, took, said[0])
        seen = "\n".join(
            f"{test} is red, but not for {mutant.because!r}:\n{_indented(text)}" for test, text in failures
        )
        return Verdict(mutant, None, took, seen or "all its tests are green")

    def _failures(self, copy: Path, tests: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Run `tests` in `copy` until one fails; yields what failed, with the lines that say why."""
        python = _python_for(copy)
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
        imported = subprocess.run(
            [python, "-c", _IMPORTS], cwd=copy, env=env, capture_output=True, text=True, check=False
        )
        if imported.returncode or not imported.stdout.startswith(str(copy)):
            raise CannotJudge(f"the copy cannot be imported:\n{_indented(imported.stdout + imported.stderr)}")
        report = copy / "report.xml"
        try:
            done = subprocess.run(
                [python, "-m", "pytest", *_PYTEST, f"--junitxml={report}", *tests],
                cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=_LONGEST + 60 * len(tests),
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise CannotJudge(f"its tests did not end within {exc.timeout:g} s") from exc
        if done.returncode not in (0, 1) or not report.exists():
            raise CannotJudge(f"pytest ended with {done.returncode}:\n{_indented(done.stdout + done.stderr)}")
        ran = 0
        for case in ElementTree.parse(report).iter("testcase"):
            ran += 1
            for outcome in case:
                name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
                if outcome.tag in ("failure", "error"):
                    yield name, "\n".join(_reasons(outcome.text or outcome.get("message") or ""))
                elif outcome.tag == "skipped":
                    raise CannotJudge(f"{name} was skipped: {outcome.get('message')}")
        if not ran:
            raise CannotJudge(f"no test ran:\n{_indented(done.stdout)}")


def _python_for(copy: Path) -> Path:
    """Return a Python with this one's packages and `copy`'s refold before them, also in processes that tests start.

    By an environment of its own, because a test may give such a process any PYTHONPATH.
    """
    folder = copy / ".venv"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, symlinks=True)
        names = {"base": str(folder), "platbase": str(folder)}
        packages = Path(sysconfig.get_path("purelib", "venv", vars=names))
        ours = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        lines = [str(copy / "src"), *(f"import site; site.addsitedir({path!r})" for path in ours)]
        (packages / "copy.pth").write_text("\n".join(lines) + "\n")
        # What Maven has brought already need not be brought again.
        (copy / ".cache").mkdir()
        for jars in (ROOT / ".cache").glob("kafka-[0-9]*"):
            (copy / ".cache" / jars.name).symlink_to(jars)
    return python


def _reasons(text: str) -> list[str]:
    """Return the lines of pytest's report that say what was wrong, without the source around them."""
    found = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return found or text.splitlines()[-3:]


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines()[-30:])


def this_python() -> str:
    """Return which Python the tests run on."""
    return f"{sys.executable}, {sys.version.split()[0]}"
