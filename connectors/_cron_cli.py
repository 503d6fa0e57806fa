"""`refold schedule ...`: what the command line adds for schedules.

Loaded by the entry point group `refold.connectors`. The parser is imported only by what uses it: `refold --help` works
without the extra.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import click

from refold.core import ConnectorPlugin
from refold.core.cli import Wrong, common, database_option, example, open_log, print_json, print_table, stamp

if TYPE_CHECKING:
    from refold.connectors.cron import ScheduleInfo


@click.group("schedule", short_help="look at schedules, pause and trigger them")
def schedule() -> None:
    """Look at schedules and their next ticks; pause, resume, trigger and backfill them.

    Works on what is in the log and needs no app: workers do the work, and learn of a change within half a minute.
    """


@schedule.command("list", short_help="show all schedules", epilog=example("refold schedule list"))
@database_option
@common
def list_command(database_url: str | None, as_json: bool) -> None:
    """Show every schedule: when it ticks, the last tick that started a workflow, the next one."""
    from refold.connectors import cron

    with open_log(database_url) as log:
        found = cron.list_schedules(log, count=1)
    if as_json:
        print_json([_fields(info) for info in found])
        return
    if not found:
        click.echo("no schedules yet")
        return
    print_table(
        ("SCHEDULE", "WHEN", "LAST", "NEXT", "OVERLAP", "MADE BY"),
        (
            (
                info.name,
                info.when,
                _local(info.last, info.timezone),
                "paused" if info.paused else _local(next(iter(info.next), None), info.timezone),
                info.overlap,
                "code" if info.declared else "create",
            )
            for info in found
        ),
    )


@schedule.command(
    "next", short_help="show the next ticks", epilog=example("refold schedule next report -n 5")
)
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@database_option
@common
def next_command(name: str, count: int, database_url: str | None, as_json: bool) -> None:
    """Show the next ticks of schedule NAME, in its own zone and in UTC; also those of a paused one."""
    from refold.connectors import cron

    with open_log(database_url) as log:
        ticks = cron.next_ticks(log, name, count)
        [info] = [info for info in cron.list_schedules(log, count=0) if info.name == name]
    if as_json:
        print_json([stamp(tick) for tick in ticks])
        return
    for tick in ticks:
        click.echo(f"{_local(tick, info.timezone)}   {_utc(tick)}")
    if not ticks:
        click.echo(f"{name} has no more ticks")


@schedule.command("pause", short_help="fire no more ticks", epilog=example("refold schedule pause report"))
@click.argument("name")
@click.option("--reason", default="", help="Why; it is kept in the schedule's history.")
@database_option
@common
def pause_command(name: str, reason: str, database_url: str | None, as_json: bool) -> None:
    """Fire no more ticks of schedule NAME until it is resumed. Workflows that it has started run on."""
    from refold.connectors import cron

    with open_log(database_url) as log:
        changed = cron.pause(log, name, reason)
    if as_json:
        print_json({"schedule": name, "paused": True, "changed": changed})
    else:
        click.echo(f"paused {name}" if changed else f"{name} was paused already")


@schedule.command(
    "resume", short_help="go on with the next tick", epilog=example("refold schedule resume report")
)
@click.argument("name")
@database_option
@common
def resume_command(name: str, database_url: str | None, as_json: bool) -> None:
    """Have schedule NAME go on with its next tick. Those of the pause are not fired; `backfill` does that."""
    from refold.connectors import cron

    with open_log(database_url) as log:
        changed = cron.resume(log, name)
        ticks = cron.next_ticks(log, name, 1)
        zones = {info.name: info.timezone for info in cron.list_schedules(log, count=0)}
    if as_json:
        print_json(
            {"schedule": name, "paused": False, "changed": changed, "next": [stamp(tick) for tick in ticks]}
        )
        return
    click.echo(f"{name} goes on" if changed else f"{name} was not paused")
    for tick in ticks:
        click.echo(f"next   {_local(tick, zones[name])}")


@schedule.command("trigger", short_help="start it now", epilog=example("refold schedule trigger report"))
@click.argument("name")
@database_option
@common
def trigger_command(name: str, database_url: str | None, as_json: bool) -> None:
    """Start the workflow of schedule NAME now, behind those of it that are still running; paused or not."""
    from refold.connectors import cron

    with open_log(database_url) as log:
        id = cron.trigger(log, name)
    if as_json:
        print_json({"schedule": name, "id": id})
        return
    click.echo(f"started {id}")
    click.echo(f"look:   refold show {id}")


@schedule.command(
    "backfill",
    short_help="start what was not started",
    epilog=example("refold schedule backfill report 2026-11-01 2026-11-07"),
)
@click.argument("name")
@click.argument("start")
@click.argument("end")
@click.option("--at-once", is_flag=True, help="All at the same time, not one after the other.")
@database_option
@common
def backfill_command(
    name: str, start: str, end: str, at_once: bool, database_url: str | None, as_json: bool
) -> None:
    """Start the workflows of the ticks of schedule NAME from START to END, both included; what has run is left alone.

    START and END are ISO times (2026-11-01, 2026-11-01T09:00, 2026-11-01T09:00Z), in the schedule's zone where they
    name none. An END without a time is the end of that day.
    """
    from refold.connectors import cron

    with open_log(database_url) as log:
        zones = {info.name: info.timezone for info in cron.list_schedules(log, count=0)}
        zone = zones.get(name, "UTC")
        begin, last = _time("START", start, zone), _time("END", end, zone)
        new = cron.backfill(log, name, begin, last, in_order=not at_once)
    if as_json:
        print_json({"schedule": name, "from": stamp(begin), "to": stamp(last), "started": new})
    else:
        click.echo(f"started {new} workflow{'' if new == 1 else 's'} of {name}")


def _fields(info: "ScheduleInfo") -> dict[str, Any]:
    return {
        "name": info.name,
        "when": info.when,
        "timezone": info.timezone,
        "workflow": info.workflow,
        "paused": info.paused,
        "declared": info.declared,
        "overlap": info.overlap,
        "missed": info.missed,
        "last": None if info.last is None else stamp(info.last),
        "next": [stamp(tick) for tick in info.next],
    }


def _time(what: str, text: str, zone: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Wrong(f"{what} {text!r} is no time\nexpected an ISO time, like:  2026-11-01T09:00") from None
    if what == "END" and len(text) == len("2026-11-01"):
        found += timedelta(days=1, microseconds=-1)
    return found if found.tzinfo is not None else found.replace(tzinfo=ZoneInfo(zone))


def _local(tick: datetime | None, zone: str) -> str:
    if tick is None:
        return ""
    local = tick.astimezone(ZoneInfo(zone))
    clock = "%H:%M" if not (local.second or local.microsecond) else "%H:%M:%S"
    return local.strftime(f"%a %Y-%m-%d {clock} %Z")


def _utc(tick: datetime) -> str:
    return tick.astimezone(UTC).isoformat().replace("+00:00", "Z")


plugin: Final = ConnectorPlugin(commands=[schedule])
