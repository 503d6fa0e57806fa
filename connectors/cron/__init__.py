"""Cron: every tick of a schedule becomes one workflow, whose ID is the tick's own instant.

`schedule` declares one over a workflow, `Tick` is what the workflow gets. `create` makes schedules from code; `pause`,
`resume`, `trigger`, `backfill`, `delete` and `list_schedules` do what the command line does; `acreate` and so on are
their forms for async code.
"""

try:
    import croniter as _parser  # noqa: F401
except ImportError as exc:
    raise ImportError("refold.connectors.cron needs its parser: pip install 'refold[cron]'") from exc

from refold.connectors.cron._change import (
    ScheduleInfo,
    ScheduleNotFound,
    abackfill,
    acreate,
    adelete,
    alist_schedules,
    apause,
    aresume,
    atrigger,
    backfill,
    create,
    delete,
    list_schedules,
    next_ticks,
    pause,
    resume,
    trigger,
)
from refold.connectors.cron._schedules import Schedules, schedule, serve
from refold.connectors.cron._tick import Tick

__all__ = [
    "ScheduleInfo",
    "ScheduleNotFound",
    "Schedules",
    "Tick",
    "abackfill",
    "acreate",
    "adelete",
    "alist_schedules",
    "apause",
    "aresume",
    "atrigger",
    "backfill",
    "create",
    "delete",
    "list_schedules",
    "next_ticks",
    "pause",
    "resume",
    "schedule",
    "serve",
    "trigger",
]
