"""What a person decides about one workflow: retry it, skip it, cancel it.

A parked workflow has no owner, and neither has one that never ran; those are settled here, in one transaction that
holds their heads. Everything else is asked to cancel by a message, which its owner delivers to the code in log order.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from refold.core._errors import WorkflowEnded, WorkflowNotParked, WorkflowSkipped
from refold.core._executor import Ending, child_answer
from refold.core._failures import record_error
from refold.core._retry import find_parked
from refold.eventlog._connect import AsyncConnection, Line
from refold.eventlog._events import (
    CancelRequested,
    ChildFailed,
    Event,
    Parked,
    Retried,
    StepFailed,
    WatcherAdded,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowStarted,
    encode_event,
)
from refold.eventlog._log import Append, HeadChange, Message, NewEvent
from refold.eventlog._settle import Decide, Held, settle

_STATUS: Final[dict[type[Event], str]] = {WorkflowFailed: "failed", WorkflowCancelled: "cancelled"}


class NoSuchWorkflow(Exception):
    """Nobody has this ID; the caller says so to the user, with the IDs that are near it."""


class _More(Exception):
    """Other workflows are part of the decision: begin again with them locked as well."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self.ids = ids


async def retry(line: Line, workflow_id: str) -> list[str]:
    """Set a parked workflow going again; return the names of the steps and children that run again.

    Raises WorkflowNotParked, NoSuchWorkflow.
    """
    again: list[str] = []

    def decide(now: int, found: Mapping[str, Held]) -> Sequence[Append]:
        held = _get_parked(found, workflow_id, "retried")
        again.clear()
        return _reopen(held, found, now, again)

    await _settle(line, [workflow_id], decide)
    return again


async def skip(line: Line, workflow_id: str, reason: str) -> None:
    """End a parked workflow as failed, with the error that parked it.

    Raises WorkflowNotParked, NoSuchWorkflow.
    """

    def decide(now: int, found: Mapping[str, Held]) -> Sequence[Append]:
        held = _get_parked(found, workflow_id, "skipped")
        parked = find_parked(held.history)
        assert parked is not None
        error = parked.error or record_error(WorkflowSkipped(workflow_id, parked.reason))
        note = "skipped by a person" + (f": {reason}" if reason else "")
        return [_end(held, now, WorkflowFailed(error=replace(error, notes=(*error.notes, note))))]

    await _settle(line, [workflow_id], decide)


async def cancel(line: Line, workflow_id: str, reason: str) -> None:
    """Cancel a workflow that is in nobody's hands and never ran, is parked or stuck; ask any other to cancel.

    One that was cancelled already stays so. Raises WorkflowEnded, NoSuchWorkflow.
    """
    asked = CancelRequested(message_id=f"cancel:{uuid.uuid4()}", reason=reason)

    def decide(now: int, found: Mapping[str, Held]) -> Sequence[Append]:
        held = _get(found, workflow_id)
        if held.status == "cancelled":
            return []
        if held.ended:
            raise WorkflowEnded(workflow_id, held.status, "there is nothing left to cancel")
        if held.owner is None and (held.status in ("parked", "stuck") or not held.ran):
            return [_end(held, now, asked, WorkflowCancelled(reason=reason))]
        message = Message(workflow_id, asked.message_id, "CancelRequested", encode_event(asked))
        return [Append(workflow_id, messages=[message])]

    await _settle(line, [workflow_id], decide)


async def _settle(line: Line, ids: Sequence[str], decide: Decide) -> None:
    async def once(connection: AsyncConnection) -> None:
        held = set(ids)
        while True:
            try:
                await settle(connection, sorted(held), decide)
                return
            except _More as more:
                held.update(more.ids)

    await line.run(once)


def _get(found: Mapping[str, Held], workflow_id: str) -> Held:
    held = found.get(workflow_id)
    if held is None:
        raise NoSuchWorkflow(workflow_id)
    return held


def _get_parked(found: Mapping[str, Held], workflow_id: str, asked: str) -> Held:
    held = _get(found, workflow_id)
    if held.status != "parked":
        raise WorkflowNotParked(workflow_id, held.status, asked)
    return held


def _reopen(held: Held, found: Mapping[str, Held], now: int, again: list[str]) -> list[Append]:
    """Return the appends that set `held` going again, and with it those of its children that failed it.

    A child is not started anew: what it has done is in its own history, and only what failed in that is run again.
    """
    undelivered: list[int] = []
    appends: list[Append] = []
    last = held.history[-1]
    assert isinstance(last.event, Parked | WorkflowFailed)
    if isinstance(last.event, WorkflowFailed):
        undelivered.append(last.seq)
    for seq in last.event.failed:
        event = held.history[seq].event
        if isinstance(event, ChildFailed):
            if event.child not in found:
                raise _More([event.child])
            child = found[event.child]
            if (child.parent, child.parent_no, child.status) != (held.workflow_id, event.no, "failed"):
                continue  # not its own, or not there any more: it gets the same answer again
            appends += _reopen(child, found, now, again)
        elif isinstance(event, StepFailed):
            again.append(event.name)
        undelivered.append(seq)
    append = _append(held, now, Retried(undelivered=sorted(undelivered)))
    append.head = HeadChange("pending", None, due_at=now)
    return [*appends, append]


def _end(held: Held, now: int, *events: Event) -> Append:
    """Return the append that ends a workflow from outside, and tells whoever waits for it as a parent."""
    append = _append(held, now, *events)
    ending = events[-1]
    assert isinstance(ending, Ending)
    append.head = HeadChange(_STATUS[type(ending)], None, finished_at=max(now, held.history[-1].at))
    watchers = [event for _, _, event in held.history if isinstance(event, WatcherAdded)]
    asked = [(event.parent, event.parent_no) for event in [*watchers, *held.watchers]]
    first = held.history[0].event
    if isinstance(first, WorkflowStarted) and first.parent is not None and first.parent_no is not None:
        asked.append((first.parent, first.parent_no))
    append.messages = [child_answer(parent, no, held.workflow_id, ending) for parent, no in asked]
    return append


def _append(held: Held, now: int, *events: Event) -> Append:
    last = held.history[-1]
    at = max(now, last.at)
    return Append(
        held.workflow_id,
        events=[
            NewEvent(last.seq + 1 + place, type(event).__name__, at, encode_event(event))
            for place, event in enumerate(events)
        ],
    )
