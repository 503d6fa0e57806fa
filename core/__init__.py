"""What a workflow is and how it runs. Connectors use this package's names, and nothing below it."""

from refold.core._app import App
from refold.core._client import Page, WorkflowInfo
from refold.core._connector import Connector, ConnectorPlugin, DevService, SourceReport
from refold.core._context import arecv, recv, uuid, workflow_args
from refold.core._definitions import Handle, Later, Step, StepInfo, Workflow, step, step_info
from refold.core._errors import (
    DecodeFailed,
    DefinitionRefused,
    Evicted,
    HistoryMismatch,
    InvalidId,
    NotAccepted,
    RefoldError,
    StepError,
    TimedOut,
    ValueRefused,
    WorkflowDeleted,
    WorkflowEnded,
    WorkflowIdReused,
    WorkflowNotFound,
    WrongCall,
)
from refold.core._failures import record_error
from refold.core._handle import WorkflowHandle
from refold.core._sample import sample
from refold.core._source import (
    Accepted,
    Cancel,
    HandedOver,
    Lane,
    Move,
    Note,
    Order,
    Send,
    Start,
    join_id,
)
from refold.eventlog import GapFound, PositionMoved, Recorded, RecordedError, SourcePosition

__all__ = [
    "Accepted",
    "App",
    "Cancel",
    "Connector",
    "ConnectorPlugin",
    "DecodeFailed",
    "DefinitionRefused",
    "DevService",
    "Evicted",
    "GapFound",
    "HandedOver",
    "Handle",
    "HistoryMismatch",
    "InvalidId",
    "Lane",
    "Later",
    "Move",
    "NotAccepted",
    "Note",
    "Order",
    "Page",
    "PositionMoved",
    "Recorded",
    "RecordedError",
    "RefoldError",
    "Send",
    "SourcePosition",
    "SourceReport",
    "Start",
    "Step",
    "StepError",
    "StepInfo",
    "TimedOut",
    "ValueRefused",
    "Workflow",
    "WorkflowDeleted",
    "WorkflowEnded",
    "WorkflowHandle",
    "WorkflowIdReused",
    "WorkflowInfo",
    "WorkflowNotFound",
    "WrongCall",
    "arecv",
    "join_id",
    "record_error",
    "recv",
    "sample",
    "step",
    "step_info",
    "uuid",
    "workflow_args",
]
