"""How far a schedule has come: its position, in a stream of its own. Pure.

The stream is `schedule:{name}/0`. Each hand-over of a schedule moves the position, in the transaction that starts the
workflows; whoever decided by an older one is refused. So each tick is decided once, however many workers are there.
"""

from typing import Final
from urllib.parse import quote, unquote

import msgspec

from refold.connectors.cron._spec import Spec, show_instant

PREFIX: Final = "schedule:"


class State(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A schedule's position. Instants in microseconds since 1970 UTC.

    `number` is its identity: 1, and one more each time that a deleted name is made again. Ticks up to `last` have
    been decided; `fired` is the last of them that started a workflow. `begun` are the workflows of this schedule that
    had not ended when last looked at, where the overlap rule asks for them. `declared`: by code, not by `create`.
    """

    number: int
    spec: Spec
    last: int
    fired: int | None = None
    begun: tuple[str, ...] = ()
    paused: bool = False
    deleted: bool = False
    declared: bool = False


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(State).decode


def encode_state(state: State) -> bytes:
    """Return the JSON that goes into the log."""
    return _encode(state)


def decode_state(raw: bytes | None) -> State | None:
    """Return the state in `raw`; None when the schedule has none yet."""
    return None if raw is None else _decode(raw)


def source_of(name: str) -> str:
    """Return the name of the source that is the schedule `name`."""
    return PREFIX + quote(name, safe="")


def name_of(source: str) -> str:
    """Return the name of the schedule that is `source`."""
    return unquote(source.removeprefix(PREFIX))


def workflow_id(name: str, number: int, tick: int, *, manual: bool = False) -> str:
    """Return the ID of the workflow that a tick starts: `cron:nightly:1:2026-11-01T05:30:00Z`."""
    return f"cron:{quote(name, safe='')}:{number}:{'manual-' if manual else ''}{show_instant(tick)}"


def order_key(name: str, number: int) -> str:
    """Return the key by which the schedule's workflows run one after the other."""
    return f"cron:{quote(name, safe='')}:{number}"
