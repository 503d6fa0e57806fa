"""A report for each working day, made once, whatever happened at nine o'clock.

    refold dev examples/report_by_schedule/report.py
    refold schedule next sales
    refold schedule trigger sales
    refold schedule backfill sales 2026-11-02 2026-11-06

It covers the time since the report before it, so a day on which nobody was there is in the next one.
"""

from datetime import UTC, datetime, timedelta

import refold
from refold.connectors import cron

app = refold.App("reports")

SALES = {datetime(2026, 11, 2, 7, tzinfo=UTC) + timedelta(hours=n): 100 + n for n in range(24 * 5)}


@refold.step
def count(since: datetime, until: datetime) -> int:
    return sum(cents for at, cents in SALES.items() if since <= at < until)


@refold.step(retries=10)
def send_mail(subject: str, text: str) -> str:
    return f"{subject}: {text}"  # mail.send(..., idempotency_key=refold.step_info().idempotency_key)


@cron.schedule("0 9 * * MON-FRI", timezone="Europe/Berlin", catch_up=timedelta(hours=6), overlap="buffer_all")
@app.workflow
def sales(tick: cron.Tick) -> str:
    since = tick.previous or tick.scheduled - timedelta(days=1)
    refold.sleep(timedelta(minutes=10))  # late entries
    cents = count(since, tick.scheduled)
    return send_mail(f"sales until {tick.local:%a %d %b %H:%M}", f"{cents / 100:.2f}")
