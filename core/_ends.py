"""Waiting for workflows to end: by memory, by notification, and by a slow look behind both."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from refold.eventlog._events import Event, WorkflowCompleted
from refold.eventlog._read import Reader

log = logging.getLogger("refold.worker")

# The look behind the notifications. One statement for all that is waited for, none when nothing is.
LOOK_EVERY = 5.0
LOOK_EVERY_UNHEARD = 0.25

_RECENT: Final = 1_000  # ends remembered
_SMALL: Final = 4_096  # bytes of a result worth remembering


class Ends:
    """Who waits for which workflow's end, in this process. Used on the engine's loop."""

    def __init__(self, reader: Reader, channel: str, heard: Callable[[], bool]) -> None:
        self._reader, self.channel = reader, channel
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = heard  # whether notifications arrive
        self._waiting: dict[str, set[asyncio.Future[Event]]] = {}
        self._look: asyncio.Task[None] | None = None
        self._recent: OrderedDict[str, Event] = OrderedDict()  # ends seen here lately; small ones

    async def wait(self, workflow_id: str, *, here: bool) -> Event:
        """Return the last event of a workflow once it has ended.

        `here`: this worker holds it now, and will say `ended` or `left`.
        """
        recent = self._recent.get(workflow_id)
        if recent is not None:
            return recent
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(workflow_id, set()).add(future)
        try:
            if not here:
                await self.ask([workflow_id])
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._keep_looking())
            return await future
        finally:
            waiting = self._waiting.get(workflow_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[workflow_id]

    async def ask(self, ids: list[str]) -> None:
        """Have the ends of `ids` notified, and look whether they have ended already."""
        await self._reader.wait(ids, self.channel)
        await self.look(ids)

    async def look(self, ids: list[str]) -> None:
        """Look whether `ids` have ended."""
        found = await self._reader.ends(ids)
        if found:
            await self._reader.wait_no_more(list(found), self.channel)
        for workflow_id, event in found.items():
            self.ended(workflow_id, event)

    def is_recent(self, workflow_id: str) -> bool:
        """Whether this process knows the workflow's end without asking."""
        return workflow_id in self._recent

    def forget(self, workflow_id: str) -> None:
        """The workflow's history was deleted: its end is not to be had any more."""
        self._recent.pop(workflow_id, None)

    def ended(self, workflow_id: str, event: Event) -> None:
        """Tell all who wait that the workflow's end, `event`, is durable."""
        # A short workflow ends before its caller asks for the result. It must not cost three statements for that.
        if isinstance(event, WorkflowCompleted) and len(bytes(event.result)) <= _SMALL:
            self._recent[workflow_id] = event
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        for future in self._waiting.pop(workflow_id, ()):
            if not future.done():
                future.set_result(event)

    def told(self, workflow_id: str) -> None:
        """A notification says that this workflow has ended."""
        if workflow_id in self._waiting:
            self._tasks.add(task := asyncio.create_task(self.look([workflow_id])))
            task.add_done_callback(self._tasks.discard)

    def left(self, workflow_id: str) -> None:
        """This worker let go of the workflow before its end."""
        if workflow_id in self._waiting:
            self._tasks.add(task := asyncio.create_task(self.ask([workflow_id])))
            task.add_done_callback(self._tasks.discard)

    def look_again(self) -> None:
        """Notifications may have been missed: look for all that is waited for."""
        if self._waiting:
            self._tasks.add(task := asyncio.create_task(self.ask(list(self._waiting))))
            task.add_done_callback(self._tasks.discard)

    async def _keep_looking(self) -> None:
        while self._waiting:
            await asyncio.sleep(LOOK_EVERY if self._heard() else LOOK_EVERY_UNHEARD)
            if self._waiting:
                try:
                    await self.look(list(self._waiting))
                except Exception as error:
                    log.warning(
                        "the ends of workflows could not be read, and are looked for again: %s", error
                    )

    def close(self) -> None:
        """Let all who wait go, with an error."""
        if self._look is not None:
            self._look.cancel()
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()
