"""The list of mutants keeps up with the code: each applies, and its tests are there. `make mutants` runs them."""

import ast
import shutil
from pathlib import Path

import pytest

from mutants._run import ROOT
from mutants.breakages import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_leaves_python_that_can_be_read(mutant: Mutant, tmp_path: Path) -> None:
    for path in {change.path for change in mutant.changes}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    mutant.apply(tmp_path)
    for broken in tmp_path.rglob("*.py"):
        ast.parse(broken.read_text())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_mutant_are_there(mutant: Mutant) -> None:
    for test in mutant.tests:
        path, _, name = test.partition("::")
        functions = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert not name or name.partition("[")[0] in functions, test


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12
