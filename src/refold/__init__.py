"""refold: durable workflows for Python, kept as an event log in Postgres.

Declare workflows on an `App`, do things in steps, wait with `sleep` and `recv`. What outside of a workflow is a plain
function is a recorded step inside of one. docs/workflows-and-steps.md begins at the beginning.
"""

try:
    import psycopg as _psycopg  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "refold needs libpq, Postgres's client library: pip install 'psycopg[binary]', or install the system's libpq"
    ) from _error

from refold.core import (
    App,
    Cancelled,
    DecodeFailed,
    DefinitionRefused,
    Evicted,
    Handle,
    HistoryMismatch,
    InvalidId,
    Page,
    Recorded,
    RefoldError,
    StepError,
    StepInfo,
    TimedOut,
    ValueRefused,
    WorkflowCancelled,
    WorkflowDeleted,
    WorkflowEnded,
    WorkflowIdReused,
    WorkflowInfo,
    WorkflowNotFound,
    WorkflowNotParked,
    WorkflowSkipped,
    WrongCall,
    step,
    step_info,
)
from refold.core._context import (
    arecv,
    asleep,
    asleep_until,
    gather,
    later,
    logger,
    now,
    random,
    recv,
    send,
    sleep,
    sleep_until,
    uuid,
)
from refold.eventlog import (
    DatabaseUnreachable,
    DataFolderInUse,
    DataFolderVersion,
    EmbeddedFailed,
    EmbeddedMissing,
    SchemaForbidden,
    SchemaMismatch,
)

__all__ = [
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
