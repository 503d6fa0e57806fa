"""Messages that nobody is notified of, that come twice, that come while the workflow is in nobody's memory (rule 14).

They are put into the inbox by SQL, without the NOTIFY of refold's own statements: as if it had been lost.
"""

from msgspec import Raw

import refold
from fixtures.workers import Log, wait_for
from refold import App
from refold.eventlog import MessageReceived
from refold.eventlog._events import encode_event


def put(log: Log, to: str, message_id: str, value: int) -> None:
    """Put a message into the inbox of `to`; nobody is told."""
    event = MessageReceived(message_id=message_id, topic="n", value=Raw(b"%d" % value))
    log.rows(
        "insert into refold.inbox (workflow_id, message_id, type, body) values (%s, %s, 'MessageReceived', %s)",
        to,
        message_id,
        encode_event(event),
    )


def wait_folded(log: Log, to: str, count: int) -> None:
    wait_for(
        lambda: log.types(to).count("MessageReceived") == count, f"{count} messages folded into {to}", 15
    )


def inbox(log: Log) -> int:
    found = log.one("select count(*) from refold.inbox")
    assert isinstance(found, int)
    return found


def test_mail_is_found_though_its_notification_was_lost(app: App, log: Log) -> None:
    """By the slow poll: once while the workflow is in memory, once when it has been let go."""

    @app.workflow
    def adder() -> int:
        return refold.recv("n", int) + refold.recv("n", int)

    with app:
        handle = adder.start(id="w")
        put(log, "w", "m1", 1)
        wait_folded(log, "w", 1)
        log.wait_status("w", "waiting")
        assert log.owner("w") is None
        put(log, "w", "m2", 2)
        assert handle.result(15) == 3


def test_a_message_leaves_the_inbox_with_the_event_that_it_becomes(app: App, log: Log) -> None:
    @app.workflow
    def adder() -> int:
        return refold.recv("n", int) + refold.recv("n", int)

    with app:
        handle = adder.start(id="w")
        app.send("w", 1, "n")
        wait_folded(log, "w", 1)
        assert inbox(log) == 0
        app.send("w", 2, "n")
        assert handle.result(10) == 3


def test_a_message_that_was_folded_before_is_not_folded_again(app: App, log: Log) -> None:
    """A sender that did not hear the answer sends again; the message's ID is in the stream."""

    @app.workflow
    def collector() -> list[int]:
        return [refold.recv("n", int) for _ in range(3)]

    with app:
        handle = collector.start(id="w")
        put(log, "w", "m1", 1)
        wait_folded(log, "w", 1)
        put(log, "w", "m1", 1)
        wait_for(lambda: inbox(log) == 0, "the repeat is gone from the inbox", 15)
        log.wait_status("w", "waiting")
        put(log, "w", "m1", 1)  # and to a copy that knows of it from the log only
        wait_for(lambda: inbox(log) == 0, "the second repeat is gone from the inbox", 15)
        assert log.types("w").count("MessageReceived") == 1, "folded again"
        app.send("w", 2, "n")
        app.send("w", 3, "n")
        assert handle.result(10) == [1, 2, 3]
