"""An app that tells the kit when its connector hands over, and dies at the moment that the kit has chosen.

The probe sits in the app that the harness declares its connector on; the connector and refold are the ones that ship.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from refold.core import Accepted, App, Cancel, HandedOver, Lane, Move, Send, Start, Workflow, WorkflowHandle

R = TypeVar("R")
Moment = Literal["before", "after"]
_LOOK: Final = 0.02


class Probe:
    """Says what is handed over, holds hand-overs back as long as a file is there, and kills the process.

    `die` "before": when messages are handed over and Postgres has not been asked yet. "after": when they have been
    committed and the connector does not know it yet.
    """

    def __init__(self, say: Callable[[str], None], gate: Path, die: Moment | None) -> None:
        self._say = say
        self._gate = gate
        self._die = die

    def at(self, moment: Moment) -> None:
        """Note that messages are at this moment of their hand-over; may not return."""
        self._say(moment)
        if moment == self._die:
            os.kill(os.getpid(), signal.SIGKILL)

    def is_held(self) -> bool:
        """Say whether hand-overs are to wait."""
        return self._gate.exists()

    def wait_before(self) -> None:
        """Wait while hand-overs are held, and note that messages are about to be handed over; may not return."""
        if self.is_held():
            self._say("held")
            never = threading.Event()
            while self.is_held():
                never.wait(_LOOK)
        self.at("before")


class ProbedLane:
    """A lane with a probe before and after each hand-over of messages; everything else is the lane's own."""

    def __init__(self, lane: Lane, probe: Probe) -> None:
        self._lane = lane
        self._probe = probe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def hand_over(self, moves: Sequence[Move]) -> "Future[HandedOver]":
        """Do what the lane does."""
        if not any(_carries_messages(move) for move in moves):
            return self._lane.hand_over(moves)
        probed: Future[HandedOver] = Future()
        if not self._probe.is_held():
            self._go(moves, probed)
        else:
            # The connector's thread goes on, as it does while Postgres takes its time.
            threading.Thread(target=self._go, args=(moves, probed), daemon=True).start()
        return probed

    def _go(self, moves: Sequence[Move], probed: "Future[HandedOver]") -> None:
        self._probe.wait_before()

        def done(real: "Future[HandedOver]") -> None:
            try:
                result = real.result()
            except BaseException as error:
                probed.set_exception(error)
                return
            self._probe.at("after")
            probed.set_result(result)

        try:
            self._lane.hand_over(moves).add_done_callback(done)
        except BaseException as error:
            probed.set_exception(error)


def _carries_messages(move: Move) -> bool:
    return bool(move.starts or move.sends or move.cancels)


class ProbedApp(App):
    """An app whose hand-overs pass a probe, whichever way a connector takes."""

    def __init__(self, name: str, *, database_url: str, probe: Probe) -> None:
        super().__init__(name, database_url=database_url)
        self._probe = probe

    def lane(self, name: str) -> Lane:
        """Return a lane with the probe in it."""
        return cast(Lane, ProbedLane(super().lane(name), self._probe))

    def accept(self, items: Sequence[Start | Send | Cancel], **options: Any) -> list[Accepted]:
        """Accept, with the probe before and after."""
        self._probe.wait_before()
        accepted = super().accept(items, **options)
        self._probe.at("after")
        return accepted

    async def aaccept(self, items: Sequence[Start | Send | Cancel], **options: Any) -> list[Accepted]:
        """Accept, with the probe before and after."""
        await asyncio.to_thread(self._probe.wait_before)
        accepted = await super().aaccept(items, **options)
        self._probe.at("after")
        return accepted

    def hand_over(self, moves: Sequence[Move]) -> HandedOver:
        """Hand over, with the probe before and after."""
        if not any(map(_carries_messages, moves)):
            return super().hand_over(moves)
        self._probe.wait_before()
        handed = super().hand_over(moves)
        self._probe.at("after")
        return handed

    async def ahand_over(self, moves: Sequence[Move]) -> HandedOver:
        """Hand over, with the probe before and after."""
        if not any(map(_carries_messages, moves)):
            return await super().ahand_over(moves)
        await asyncio.to_thread(self._probe.wait_before)
        handed = await super().ahand_over(moves)
        self._probe.at("after")
        return handed

    def start(
        self, workflow: Workflow[..., R], input: bytes, digest: str, *, id: str | None
    ) -> WorkflowHandle[R]:
        """Start a workflow by its own `start`, with the probe before and after."""
        self._probe.wait_before()
        handle = super().start(workflow, input, digest, id=id)
        self._probe.at("after")
        return handle

    async def astart(
        self, workflow: Workflow[..., R], input: bytes, digest: str, *, id: str | None
    ) -> WorkflowHandle[R]:
        """Start a workflow by its own `astart`, with the probe before and after."""
        await asyncio.to_thread(self._probe.wait_before)
        handle = await super().astart(workflow, input, digest, id=id)
        self._probe.at("after")
        return handle


__all__ = ["Moment", "Probe", "ProbedApp"]
