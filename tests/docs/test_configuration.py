"""docs/configuration.md is what the code says: options, defaults, variables."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate.py, as a module."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(generator: ModuleType) -> None:
    assert generator.PAGE.read_text() == generator.page(), "run: make docs"


def test_every_environment_variable_that_the_code_reads_is_described(generator: ModuleType) -> None:
    assert generator.variables_in_code("core", "connectors", "eventlog") == set(generator.VARIABLES)


def test_whatever_declares_a_source_is_described(generator: ModuleType) -> None:
    declared = (
        "kafka.consumer",
        "kafka.signal",
        "cron.schedule",
        "nats.consumer",
        "webhook.post",
        "webhook.signal",
        "slack.mount",
    )
    assert {f"refold.connectors.{name}" for name in declared} <= set(generator.SECTIONS)


def test_every_public_option_has_a_keyword_of_its_own(generator: ModuleType) -> None:
    # Options are keyword-only: a call stays readable, and options can be added anywhere. A cron expression is no
    # option but what most schedules are; it can be left out for `every=` or `at=`.
    allowed = {"refold.connectors.cron.schedule": ["expression"]}
    for title, function in generator.SECTIONS.items():
        positional = [
            option.name
            for option in generator.options_of(function)
            if option.kind is option.POSITIONAL_OR_KEYWORD and option.default is not option.empty
        ]
        assert positional == allowed.get(title, []), title
