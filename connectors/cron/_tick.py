"""What a scheduled workflow gets."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from refold.core import DefinitionRefused, Workflow

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Tick(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tick of a schedule: the instant that it was due at, never the one at which it came to run.

    `scheduled` and `previous` are aware UTC times. `previous` is the tick before it that started a workflow, None for
    the first: so [previous, scheduled) leaves nothing out where ticks were skipped or missed. `manual` is a person's
    `refold schedule trigger`, `backfill` one that was asked for afterwards. Every field has a default, so that a
    test can write `cron.Tick(scheduled=...)`.
    """

    scheduled: datetime = _EPOCH
    schedule: str = ""
    timezone: str = "UTC"
    previous: datetime | None = None
    manual: bool = False
    backfill: bool = False

    @property
    def local(self) -> datetime:
        """`scheduled` as the schedule's own zone shows it."""
        return self.scheduled.astimezone(ZoneInfo(self.timezone))


def tick_parameter(where: str, workflow: Workflow[..., Any], args: Mapping[str, Any] | None = None) -> str:
    """Return the name of the parameter that takes the tick.

    Raises DefinitionRefused when the workflow does not take one `cron.Tick` and, beside it, what is in `args`.
    """
    ticks = [name for name, hint in workflow.parameters.items() if hint is Tick]
    others = [name for name in workflow.parameters if name not in ticks]
    if len(ticks) == 1 and set(others) == set(args or {}):
        return ticks[0]
    found = ", ".join(
        f"{key}: {getattr(hint, '__name__', hint)}" for key, hint in workflow.parameters.items()
    )
    more = f" and {', '.join(args)}" if args else ""
    raise DefinitionRefused(
        where,
        f"it calls workflow {workflow.name!r} with one cron.Tick{more}, but that takes ({found})",
        f"Write `def {workflow.name}(tick: cron.Tick{''.join(f', {name}: ...' for name in args or {})})`.",
    )
