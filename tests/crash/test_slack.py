"""Slack delivers as it does, the process dies at each point, Postgres stands still: every event runs once.

Slack's own retries are the only thing that brings back what was not acknowledged. Interactions are sent once: one
that was acknowledged has run, and none runs twice.
"""

import collections
import os
import random
import signal
import socket
import time
from concurrent.futures import Future
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from fixtures.postgres import OwnPostgres, free_port
from fixtures.slack import APP_TOKEN, FakeSlack, Sent
from fixtures.workers import Log, Program, Programs, wait_for

PROGRAM = Path(__file__).with_name("slack_app.py")
POINTS = ("before", "committed", "answered", "step", "said")
EVENTS, COMMANDS = 40, 8  # in each round

# The text of the message or command that each workflow was started with.
STARTED: LiteralString = """
    select coalesce(p #>> '{event,text}', p ->> 'text')
      from (select coalesce(i #> '{event,body}', i #> '{command,body}', i #> '{payload,body}') as p
              from (select convert_from(body, 'UTF8')::json -> 'input' as i
                      from refold.events where type = 'WorkflowStarted') as inputs) as payloads
"""


class Play:
    """The program, started again whenever it is dead, and all that Slack has sent to it."""

    def __init__(
        self,
        slack: FakeSlack,
        programs: Programs,
        folder: Path,
        url: str,
        mode: str,
        *,
        patient: bool = False,
    ) -> None:
        self.slack, self.mode = slack, mode
        self._programs = programs
        self._port = free_port()
        self._environment = {"SLACK_API": slack.api, "KILL_FOLDER": str(folder), "REFOLD_DATABASE_URL": url}
        if mode == "socket":
            self._environment["APP_TOKEN"] = APP_TOKEN
        if patient:
            self._environment["PATIENT"] = "yes"
            slack.patience = 60.0
        slack.endpoint = f"http://127.0.0.1:{self._port}/slack/events"
        self.deaths = self.to_die = 0
        self.events: list[str] = []  # the first word of each event's text
        self.sent: list[Future[Sent]] = []
        self.commands: dict[str, Future[Sent]] = {}
        self.program = self._start()
        self.log = Log(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table handled (text text)")

    def _start(self) -> Program:
        return self._programs.start(PROGRAM, str(self._port), **self._environment)

    def round(self, chance: random.Random, point: str | None, *, events: int = EVENTS) -> None:
        """Send events (some of them twice, in any order) and commands, with one death among them."""
        wait_for(self._is_up, "the program takes what Slack sends")
        self.slack.hold_retries()
        self.to_die += point is not None
        texts = [
            f"{kind}{len(self.events) + n}"
            for n, kind in enumerate(chance.choices(("workflow", "bolt"), k=events))
        ]
        self.events += texts
        if point is not None:
            # A bolt listener is one step: only there a call can be made and not be recorded.
            kind = {"said": "bolt", "step": chance.choice(("bolt", "workflow"))}.get(point)
            chosen = chance.choice(
                [n for n, text in enumerate(texts) if kind is None or text.startswith(kind)]
            )
            texts[chosen] += f" die:{point}"
        payloads = [self.slack.message(text) for text in texts]
        twice = payloads + chance.sample(payloads, events // 5)
        chance.shuffle(twice)
        send_event = self.slack.send_envelope if self.mode == "socket" else self.slack.send_event
        send_other = self.slack.send_envelope if self.mode == "socket" else self.slack.send_interaction
        for n, payload in enumerate(twice):
            self.sent.append(send_event(payload))
            if n % (len(twice) // COMMANDS) == 0:
                text = f"command{len(self.commands)}"
                command = self.slack.command(chance.choice(("/book", "/listen")), text)
                self.commands[text] = send_other(command)
        self.wait_delivered()

    def _is_up(self) -> bool:
        self.revive()
        if self.mode == "socket":
            return self.slack.is_connected()
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def wait_delivered(self) -> None:
        """Wait until Slack has nothing on its way, and start the program again when it died."""
        wait_for(self._is_delivered, "Slack has delivered everything", 180)

    def _is_delivered(self) -> bool:
        self.revive()
        # Slack's second and third retry come minutes later: whoever died is up again then.
        if self.deaths == self.to_die and self._is_up():
            self.slack.release_retries()
        return self.deaths == self.to_die and all(
            future.done() for future in [*self.sent, *self.commands.values()]
        )

    def revive(self) -> None:
        if not self.program.running:
            assert self.program.wait() == -signal.SIGKILL, self.program.output
            self.deaths += 1
            self.program = self._start()

    def check(self) -> dict[str, int]:
        """Wait until nothing is open, and count: each event once, each acknowledged command once, no other twice."""
        wait_for(self._is_idle, "all workflows have ended", 180)
        lost = [sent for sent in (future.result() for future in self.sent) if not sent.delivered]
        assert lost == [], "Slack has given up on an event"
        started: collections.Counter[str] = collections.Counter()
        for (text,) in self.log.rows(STARTED):
            started[text.split()[0]] += 1
        assert {text: started[text] for text in self.events if started[text] != 1} == {}, "lost or doubled"
        acknowledged = {text for text, future in self.commands.items() if future.result().delivered}
        assert {text for text in acknowledged if started[text] != 1} == set(), (
            "acknowledged, and not in the log"
        )
        assert {text: n for text, n in started.items() if n > 1} == {}, "started twice"
        booked = collections.Counter(text for (text,) in self.log.rows("select text from handled"))
        assert {text: n for text, n in booked.items() if n > 1} == {}, "run twice"
        assert {text for text in self.events if text.startswith("workflow")} <= set(booked)
        assert (
            self.log.rows("select workflow_id, status from refold.workflows where status <> 'completed'")
            == []
        )
        said = collections.Counter(call["text"].split()[0] for call in self.slack.called("chat.postMessage"))
        assert set(self.events) <= set(said)
        # A call that was made and not recorded is made again, once for each death: Slack knows no idempotency key.
        assert max(said.values()) <= 1 + self.deaths
        self.log.check()
        self.log.close()
        return {
            "events": len(self.events),
            "deliveries": sum(len(future.result().attempts) for future in self.sent),
            "commands": len(self.commands),
            "acknowledged": len(acknowledged),
            "deaths": self.deaths,
            "said again after a death": sum(said.values()) - len(said),
        }

    def _is_idle(self) -> bool:
        self.revive()
        return not self.log.rows(
            "select 1 from refold.workflows where status in ('pending', 'running', 'waiting') limit 1"
        )


@pytest.fixture
def own_url(own_postgres: OwnPostgres) -> str:
    """A database on a server that this test may stop."""
    return own_postgres.url_of(own_postgres.create_database(own_postgres.template()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["http", "socket"])
@pytest.mark.parametrize("passes", [1, pytest.param(6, marks=pytest.mark.long)])
def test_every_event_runs_once_wherever_the_process_dies(
    slack: FakeSlack, programs: Programs, tmp_path: Path, database_url: str, mode: str, passes: int
) -> None:
    play = Play(slack, programs, tmp_path, database_url, mode, patient=True)
    chance = random.Random(7)
    for _ in range(passes):
        for point in POINTS:
            play.round(chance, point)
    counts = play.check()
    assert counts["events"] == EVENTS * len(POINTS) * passes
    assert counts["deaths"] == len(POINTS) * passes
    print(f"slack over {mode}: {counts}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["http", "socket"])
def test_a_postgres_that_stands_still_for_ten_seconds_loses_and_doubles_nothing(
    slack: FakeSlack, programs: Programs, tmp_path: Path, own_postgres: OwnPostgres, own_url: str, mode: str
) -> None:
    play = Play(slack, programs, tmp_path, own_url, mode)
    chance = random.Random(11)
    play.round(chance, None)
    wait_for(play._is_idle, "the first round has run", 60)
    assert all(command.result().delivered for command in play.commands.values())
    slack.hold_retries()
    stopped = _stop(own_postgres)
    try:
        stalled = _Stalled(play, chance)
        # Slack's retry after a minute finds it running again; until then ten seconds have gone by.
        wait_for(stalled.has_lasted, "ten seconds", 60)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    wait_for(play._is_idle, "Postgres answers, and the worker is at work again", 60)
    slack.release_retries()
    play.wait_delivered()
    counts = play.check()
    assert counts["events"] == 3 * EVENTS
    assert counts["deaths"] == 0
    # The answers were failures: while it stood still, nothing was acknowledged.
    first = [future.result().attempts[0] for future in stalled.sent]
    assert "ok" not in first
    assert [command.result().attempts for command in stalled.commands if command.result().delivered] == []
    print(f"slack over {mode}, Postgres stalled: {counts}")


class _Stalled:
    """What is sent while Postgres stands still: at once, and again in the middle of it."""

    def __init__(self, play: Play, chance: random.Random) -> None:
        self._play, self._chance = play, chance
        self._clock = time.monotonic
        self._began = self._clock()
        self.sent: list[Future[Sent]] = []
        self.commands: list[Future[Sent]] = []
        self._batches = [0.0, 4.0]

    def has_lasted(self) -> bool:
        gone = self._clock() - self._began
        if self._batches and gone >= self._batches[0]:
            self._batches.pop(0)
            self._send()
        return gone >= 10

    def _send(self) -> None:
        play = self._play
        texts = [f"workflow{len(play.events) + n}" for n in range(EVENTS)]
        play.events += texts
        by_socket = play.mode == "socket"
        for text in texts:
            payload = play.slack.message(text)
            self.sent.append(
                play.slack.send_envelope(payload) if by_socket else play.slack.send_event(payload)
            )
        text = f"command{len(play.commands)}"
        command = play.slack.command("/book", text)
        play.commands[text] = (play.slack.send_envelope if by_socket else play.slack.send_interaction)(
            command
        )
        self.commands.append(play.commands[text])
        play.sent += self.sent[-EVENTS:]


def _stop(postgres: OwnPostgres) -> list[int]:
    """SIGSTOP the whole server: the postmaster first, so that it starts nobody else. Return whom to continue."""
    pid = int((Path(str(postgres.data_dir)) / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGSTOP)
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGSTOP)
    return [pid, *children]
