"""A service that is down for an hour: the step is tried again, at growing distances, until it answers.

    export LETTERS_URL=http://127.0.0.1:8000/letters
    refold dev examples/outage/outage.py
    refold start examples/outage/outage.py write_letter "dear Ada" --id letter-1
    refold show letter-1

Every failed try is an event with the time of the next one. So the schedule survives a crash: a new worker does not
begin again at the first pause, and does not try at once.
"""

import os
import urllib.error
import urllib.request
from datetime import timedelta

import refold

app = refold.App("letters")


def is_outage(error: Exception) -> bool:
    """A 4xx answer will be the same tomorrow; anything else may pass."""
    return not (isinstance(error, urllib.error.HTTPError) and error.code < 500)


@refold.step(
    retries=40,
    retry_delay=timedelta(seconds=1),
    max_delay=timedelta(minutes=5),
    timeout=timedelta(seconds=30),
    retry_if=is_outage,
)
def post(text: str) -> str:
    key = refold.step_info().idempotency_key
    request = urllib.request.Request(
        os.environ["LETTERS_URL"], data=text.encode(), headers={"Idempotency-Key": key}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


@app.workflow
def write_letter(text: str) -> str:
    number = post(text)
    return f"posted as {number}"
