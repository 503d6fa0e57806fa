"""`refold webhook send`, and endpoints under `refold dev` and `refold worker --http`, as a user types them."""

import os
import shlex
import subprocess
from functools import partial

import pytest

from fixtures.pages import Running
from fixtures.terminal import REFOLD, Terminal
from fixtures.workers import wait_for

HOOKS = '''\
"""Endpoints of every kind."""

from typing import Any

import msgspec

import refold
from refold.connectors import webhook

app = refold.App("hooks")


class Payment(msgspec.Struct):
    id: str
    cents: int


def endpoint(path: str, **options: Any) -> None:
    @webhook.post(path, **options)
    @app.workflow(name=path[1:])
    def take(delivery: webhook.Delivery[Payment]) -> str:
        return f"{delivery.body.id} {delivery.body.cents}"


endpoint("/standard", verify=webhook.standard(secret="env:STANDARD_SECRET"))
endpoint("/github", verify=webhook.github(secret="env:GITHUB_SECRET"))
endpoint("/stripe", verify=webhook.stripe(secret="whsec_s"))
endpoint("/slack", verify=webhook.slack(secret=["env:SLACK_NEW", "env:SLACK_OLD"]))
endpoint("/shopify", verify=webhook.shopify(secret="s"))
endpoint("/hmac", verify=webhook.hmac(secret="it's", header="X-Sign"), id=lambda delivery: delivery.body.id)
endpoint("/token", verify=webhook.bearer(token="env:TOKEN"), id=webhook.idempotency_key(), wait=30)
endpoint("/made-up", verify=webhook.bearer(token="env:MADE_UP", header="X-Token"), dedup="body")
endpoint("/events", verify=webhook.none(), id=webhook.cloudevents())


@webhook.signal("/verdicts", to=lambda d: f"approval-{d.body.id}", topic="verdict", body=Payment,
                verify=webhook.stripe(secret="s"))
@app.workflow
def approval() -> int:
    return refold.recv("verdict", Payment).cents
'''
PATHS = ("standard", "github", "stripe", "slack", "shopify", "hmac", "token", "made-up", "events", "verdicts")


SECRETS = ("STANDARD_SECRET", "GITHUB_SECRET", "SLACK_NEW", "SLACK_OLD", "MADE_UP")


@pytest.fixture
def desk(terminal: Terminal, database_url: str) -> Terminal:
    """A terminal with endpoints, a database, and one of their secrets set."""
    terminal.write("hooks.py", HOOKS)
    terminal.environment |= {"REFOLD_DATABASE_URL": database_url, "TOKEN": "t0ken"}
    return terminal


def _shown(running: Running, label: str) -> list[str]:
    """Return the texts under a label of the summary."""
    found, current = [], ""
    for line in running.output.splitlines():
        if line.startswith("  ") and line.strip():
            current = line.split()[0] if line[2] != " " else current
            if current == label:
                found.append(line.strip().removeprefix(label).strip())
    return found


@pytest.mark.timeout(240)
def test_dev_serves_the_endpoints_and_each_line_that_it_prints_works(desk: Terminal) -> None:
    dev = desk.start("dev", "hooks.py")
    wait_for(lambda: len(_shown(dev, "try")) == len(PATHS), "the summary", 60)
    (url,) = _shown(dev, "http")
    assert url.startswith("http://127.0.0.1:") and url.endswith("/hooks")
    assert [line.split()[1] for line in _shown(dev, "webhook")] == [f"/{path}" for path in PATHS]
    (made_up,) = _shown(dev, "secrets")
    assert made_up.startswith(
        "STANDARD_SECRET, GITHUB_SECRET, SLACK_NEW, SLACK_OLD, MADE_UP: not set, so made up"
    )
    assert "t0ken" not in dev.output

    for path, line in zip(PATHS, _shown(dev, "try"), strict=True):
        assert line.startswith(f"curl {url}/{path} ")
        done = subprocess.run(
            ["bash", "-c", f"{line} -s -w ' %{{http_code}}'"],
            env=desk.environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout[-3:] == ("200" if path == "token" else "202"), f"{line}\n{done.stdout}"

    payment = desk.write("payment.json", '{"id": "p-1", "cents": 450}')
    for _ in range(2):
        sent = desk.type("webhook", "send", "/standard", str(payment), "--id", "msg_1", "--json")
        assert (sent.code, sent.json) == (
            0,
            {"status": 202, "answer": {"workflow": "webhook:standard:msg_1"}},
        )
    said = desk.type("webhook", "send", "token", "-", input='{"id": "p-2", "cents": 1}')
    assert said.out.splitlines()[0] == "200 OK"
    assert '"result":"p-2 1"' in said.out

    state = desk.folder / ".refold" / "webhook-secrets.json"
    assert os.stat(state).st_mode & 0o777 == 0o600
    kept = state.read_text()
    assert dev.interrupt() < 10
    assert not (desk.folder / ".refold" / "webhook-dev.json").exists()
    assert desk.type("webhook", "send", "/standard", str(payment)).code == 2

    again = desk.start("dev", "hooks.py")
    wait_for(lambda: _shown(again, "try"), "the summary", 60)
    assert state.read_text() == kept
    assert (
        desk.type("webhook", "send", "/nowhere", str(payment))
        .err.splitlines()[1]
        .startswith("  endpoints in it: ")
    )


@pytest.mark.timeout(240)
def test_two_devs_take_two_ports(desk: Terminal) -> None:
    first, second = (desk.start("dev", "hooks.py") for _ in range(2))
    for dev in (first, second):
        wait_for(partial(_shown, dev, "try"), "the summary", 60)
    assert _shown(first, "http") != _shown(second, "http")


@pytest.mark.timeout(240)
def test_a_worker_serves_where_it_is_told_and_prints_no_signed_lines(desk: Terminal) -> None:
    missing = desk.type("worker", "hooks.py", "--http", "127.0.0.1:0")
    assert missing.code == 1
    assert "the environment variable STANDARD_SECRET, which is not set" in missing.err
    desk.environment |= dict.fromkeys(SECRETS, "whsec_c2VjcmV0")
    worker = desk.start("worker", "hooks.py", "--http", "127.0.0.1:0")
    wait_for(lambda: len(_shown(worker, "try")) == len(PATHS), "the summary", 60)
    assert "t0ken" not in worker.output and "c2VjcmV0" not in worker.output
    (url,) = _shown(worker, "http")
    for path, line in zip(PATHS, _shown(worker, "try"), strict=True):
        assert line.startswith("echo '")
        assert line.endswith(f"| refold webhook send /{path} - --app hooks.py --url {url}")
        done = subprocess.run(
            ["bash", "-c", line], cwd=desk.folder, capture_output=True, text=True, timeout=60, check=False,
            env={**desk.environment, "PATH": f"{REFOLD.parent}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stdout.startswith("200" if path == "token" else "202"), (
            f"{line}\n{done.stdout}{done.stderr}"
        )
    sent = desk.type(
        *shlex.split(
            f"webhook send /github - --app hooks.py --url {url} --id g-1 --header X-GitHub-Event=ping"
        ),
        input='{"zen": "Keep it logically awesome."}',
    )
    # urllib sends the last of two equal headers: the one that was typed.
    assert sent.out.splitlines() == ["200 OK", '{"ignored":"ping"}']
    refused = desk.type("webhook", "send", "/stripe", "-", "--app", "hooks.py", "--url", url, input="no JSON")
    assert refused.code == 1
    assert refused.out.splitlines()[0] == "400 Bad Request"


@pytest.mark.timeout(240)
def test_without_an_address_a_worker_serves_nothing_and_says_so(desk: Terminal) -> None:
    desk.environment |= dict.fromkeys(SECRETS, "whsec_c2VjcmV0")
    worker = desk.start("worker", "hooks.py")
    wait_for(lambda: _shown(worker, "http"), "the summary", 60)
    (text,) = _shown(worker, "http")
    assert text.startswith(
        "not served by this process: mount webhook.asgi(app), or set REFOLD_HTTP=HOST:PORT"
    )


def test_send_says_what_is_wrong(desk: Terminal) -> None:
    none = desk.type("webhook", "send", "/standard", "-", input="{}")
    assert none.code == 2
    assert none.err.splitlines()[0] == "refold: no `refold dev` with endpoints runs here"
    nobody = desk.type(
        "webhook",
        "send",
        "/stripe",
        "-",
        "--app",
        "hooks.py",
        "--url",
        "http://127.0.0.1:9/hooks",
        input="{}",
    )
    assert nobody.code == 3
    assert "nobody answers at http://127.0.0.1:9/hooks/stripe" in nobody.err
    odd = desk.type(
        "webhook", "send", "/stripe", "-", "--app", "hooks.py", "--url", "file:///etc", input="{}"
    )
    assert odd.code == 2
    header = desk.type(
        "webhook",
        "send",
        "/stripe",
        "-",
        "--app",
        "hooks.py",
        "--url",
        "http://x",
        "--header",
        "a",
        input="{}",
    )
    assert header.code == 2
    taken = desk.type("worker", "hooks.py", "--http", "nowhere", input="")
    assert taken.code == 1
