"""Reminds somebody of something after days, and again, until they say that it is done.

    refold dev examples/reminder/reminder.py
    refold start examples/reminder/reminder.py remind ada "water the plants" --id plants
    refold send plants true --topic done

A workflow that sleeps is a row in a table. It sleeps through deploys, crashes and restarts of the database.
"""

from datetime import timedelta

import refold

app = refold.App("reminder")

AFTER = [timedelta(days=1), timedelta(days=3), timedelta(days=7)]


@refold.step(retries=10)
def send_mail(to: str, text: str) -> str:
    return f"to {to}: {text}"  # mail.send(..., idempotency_key=refold.step_info().idempotency_key)


@app.workflow
def remind(who: str, what: str) -> str:
    sent = 0
    for pause in AFTER:
        try:
            refold.recv("done", bool, timeout=pause)
        except refold.TimedOut:
            send_mail(who, f"please {what}")
            sent += 1
        else:
            return f"done after {sent} reminders"
    refold.sleep(timedelta(days=14))
    send_mail(who, f"I give up: {what}")
    return "given up"
