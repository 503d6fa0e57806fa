"""What the messages of the kit ask a workflow to do, and the workflow's side of it."""

import threading
from pathlib import Path
from typing import Final, Literal

import msgspec
import psycopg

from refold.core import step

# What has been done, once for each time. A row is written in the transaction that records the step, so it is there
# exactly as often as a workflow did it.
TABLE: Final = (
    "create table if not exists kit_done (key text not null, at timestamptz not null default now())"
)
_LOOK: Final = 0.02


class Work(msgspec.Struct, frozen=True):
    """One message of the kit: its identity, and what its workflow has to do.

    "finish" does it and completes, "fail" raises, "hold" waits until the kit lets go and then completes.
    """

    key: str
    do: Literal["finish", "fail", "hold"] = "finish"

    @property
    def body(self) -> bytes:
        """This as JSON: the body for a message that carries bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def read(cls, body: bytes | str) -> "Work":
        """Return what `body` holds; for workflows that get it as it came."""
        return msgspec.json.decode(body, type=cls)


class Failing(Exception):
    """The message asked for a workflow that fails."""


class _Place:
    """Where this process looks whether it is to hold work; set by the kit in the processes that it starts."""

    folder: Path | None = None


@step(name="kit_hold")
def _hold(key: str) -> None:
    # A file and not a message: what is held must not depend on what is being judged.
    never = threading.Event()
    while _Place.folder is not None and (_Place.folder / "hold").exists():
        never.wait(_LOOK)


@step(name="kit_done", transaction=True)
def _done(conn: psycopg.Connection, key: str) -> None:
    conn.execute("insert into kit_done (key) values (%s)", (key,))


def perform(work: Work) -> str:
    """Do what the message asks; the body of the workflow that a harness declares. Returns the message's key."""
    if work.do == "fail":
        raise Failing(f"message {work.key} asked for a workflow that fails")
    if work.do == "hold":
        _hold(work.key)
    _done(work.key)
    return work.key


async def aperform(work: Work) -> str:
    """Do what `perform` does, in an `async def` workflow."""
    if work.do == "fail":
        raise Failing(f"message {work.key} asked for a workflow that fails")
    if work.do == "hold":
        await _hold.acall(work.key)
    await _done.acall(work.key)
    return work.key


__all__ = ["TABLE", "Failing", "Work", "aperform", "perform"]
