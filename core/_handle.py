"""A workflow that was started, seen from outside."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from refold.core._definitions import Workflow
from refold.core._errors import TimedOut, WorkflowCancelled, WorkflowDeleted
from refold.core._failures import rebuild_error
from refold.eventlog import _events
from refold.eventlog._events import Event, IdentitySealed, Parked, WorkflowCompleted, WorkflowFailed

if TYPE_CHECKING:
    from refold.core._app import App

R = TypeVar("R")


class WorkflowHandle(Generic[R]):
    """Where a workflow's result can be had, now or later, whichever worker runs it."""

    __slots__ = ("_app", "_id", "_workflow")

    def __init__(self, app: "App", workflow_id: str, workflow: Workflow[..., Any] | None) -> None:
        self._app, self._id, self._workflow = app, workflow_id, workflow

    def __repr__(self) -> str:
        return f"<handle of workflow {self._id!r}>"

    @property
    def id(self) -> str:
        """The workflow's ID."""
        return self._id

    def result(self, timeout: float | None = None) -> R:
        """Wait for the workflow to end and return its result, or raise the error that it failed with.

        Raises TimedOut after `timeout` seconds; the workflow goes on. WorkflowCancelled, WorkflowNotFound,
        WorkflowDeleted.
        """
        coroutine = self._result(timeout)
        return self._app._call(coroutine, f"handle.result() of {self._id}", "await handle.aresult()")

    async def aresult(self, timeout: float | None = None) -> R:
        """Do what `result` does, from async code."""
        return await self._app._acall(self._result(timeout))

    def status(self) -> str:
        """Return the workflow's status now: pending, running, waiting, stuck, parked, completed, failed, cancelled."""
        return self._app.info(self._id).status

    async def astatus(self) -> str:
        """Do what `status` does, from async code."""
        return (await self._app.ainfo(self._id)).status

    def cancel(self, reason: str = "") -> None:
        """Ask the workflow to cancel; see `app.cancel`."""
        self._app.cancel(self._id, reason)

    async def acancel(self, reason: str = "") -> None:
        """Do what `cancel` does, from async code."""
        await self._app.acancel(self._id, reason)

    async def _result(self, timeout: float | None) -> R:
        event = await self._app._client_now().wait_end(self._id, timeout)
        if event is None:
            raise TimedOut(f"the result of workflow {self._id}", f"{timeout:g} s")
        return self._decoded(event)

    def _decoded(self, event: Event) -> R:
        if isinstance(event, WorkflowCompleted):
            if self._workflow is None:
                return cast(R, msgspec.json.decode(event.result))
            return cast(R, self._workflow.decode_result(event.result))
        if isinstance(event, WorkflowFailed):
            raise rebuild_error(event.error)
        if isinstance(event, _events.WorkflowCancelled):
            raise WorkflowCancelled(self._id, event.reason)
        if isinstance(event, IdentitySealed):
            raise WorkflowDeleted(self._id)
        assert not isinstance(event, Parked), "parked is no end"
        raise WorkflowDeleted(self._id)
