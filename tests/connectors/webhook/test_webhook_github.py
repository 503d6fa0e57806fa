"""GitHub's payloads as an npm package ships them, signed, sent to a running `refold dev` by an ordinary client."""

import hashlib
import hmac
import json
import os
import random
import shutil
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fixtures.terminal import Terminal
from fixtures.workers import Log, wait_for

CACHE = Path(__file__).parents[3] / ".cache" / "webhooks-examples"
PACKAGE, VERSION = "@octokit/webhooks-examples", "7.6.1"
SECRET = "It's a Secret to Everybody"

HOOKS = '''\
"""Everything that GitHub says, one workflow each."""

from typing import Any

import refold
from refold.connectors import webhook

app = refold.App("github")


@refold.step
def note(event: str, action: str | None) -> str:
    return f"{event}.{action}" if action else event


@webhook.post("/github", verify=webhook.github(secret="env:GITHUB_SECRET"))
@app.workflow
def on_github(delivery: webhook.Delivery[dict[str, Any]]) -> str:
    return note(delivery.header("x-github-event") or "", delivery.body.get("action"))
'''


@pytest.fixture(scope="module")
def examples() -> list[tuple[str, bytes]]:
    """Every example payload with its event, as the bytes that are sent; from npm, once, kept under `.cache/`."""
    kept = CACHE / f"{VERSION}.json"
    if not kept.exists():
        reason = _fetch(kept)
        if reason and os.environ.get("REFOLD_REQUIRE_ALL"):
            pytest.fail(reason)
        if reason:
            pytest.skip(reason)
    found = []
    for event in json.loads(kept.read_text()):
        for payload in event["examples"]:
            found.append((event["name"], json.dumps(payload, ensure_ascii=False).encode()))
    return found


def _fetch(kept: Path) -> str:
    """Put the payloads where they are kept; return why that can't be done."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed: no GitHub payloads"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        pack = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        packed = subprocess.run(pack, cwd=work, capture_output=True, text=True, check=False)
        if packed.returncode != 0:
            return f"npm has no {PACKAGE}@{VERSION} for us: {packed.stderr.strip()[-300:]}"
        subprocess.run(["tar", "-xzf", packed.stdout.split()[-1]], cwd=work, check=True)
        (Path(work) / "package" / "api.github.com" / "index.json").rename(kept)
    return ""


def _headers(event: str, body: bytes, delivery: str) -> dict[str, str]:
    """Sign as GitHub does; with nothing of ours."""
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/044aadd",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }


@pytest.mark.timeout(300)
def test_each_payload_is_started_once_and_its_duplicates_hear_the_same_id(
    examples: list[tuple[str, bytes]], terminal: Terminal, database_url: str, log: Log
) -> None:
    terminal.write("hooks.py", HOOKS)
    terminal.environment |= {"REFOLD_DATABASE_URL": database_url, "GITHUB_SECRET": SECRET}
    dev = terminal.start("dev", "hooks.py")
    wait_for(lambda: "/hooks\n" in dev.output and "try " in dev.output, "the summary", 60)
    url = next(word for word in dev.output.split() if word.startswith("http://") and word.endswith("/hooks"))

    deliveries = [(event, body, str(uuid.uuid4())) for event, body in examples]
    thrice = deliveries * 3
    random.shuffle(thrice)
    with httpx2.Client(timeout=60) as client, ThreadPoolExecutor(8) as threads:

        def send(delivery: tuple[str, bytes, str]) -> tuple[str, int, dict[str, Any]]:
            event, body, guid = delivery
            answer = client.post(f"{url}/github", content=body, headers=_headers(event, body, guid))
            return guid, answer.status_code, answer.json()

        answers = list(threads.map(send, thrice))

    pings = {guid for event, _, guid in deliveries if event == "ping"}
    assert len(deliveries) == 329 and pings
    for guid, status, said in answers:
        if guid in pings:
            assert (status, said) == (200, {"ignored": "ping"})
        else:
            assert (status, said["workflow"]) == (202, f"webhook:on_github:{guid}")
    started = {row[0] for row in log.rows("select workflow_id from refold.workflows")}
    assert started == {f"webhook:on_github:{guid}" for _, _, guid in deliveries if guid not in pings}
    wait_for(
        lambda: log.one("select count(*) from refold.workflows where status <> 'completed'") == 0,
        "all end",
        120,
    )
    for event, body, guid in deliveries:
        if guid in pings:
            continue
        history = log.events(f"webhook:on_github:{guid}")
        assert [each["type"] for each in history] == ["WorkflowStarted", "StepCompleted", "WorkflowCompleted"]
        payload = json.loads(body)
        delivery = history[0]["input"]["delivery"]
        assert delivery["body"] == payload
        assert delivery["text"].encode() == body
        action = payload.get("action")
        assert history[-1]["result"] == (f"{event}.{action}" if action else event)

    # A few of the examples are the same to the byte: under IDs of their own they are told apart, and reported.
    bodies = {body for event, body, _ in deliveries if event != "ping"}
    reported = {guid for guid, _, said in answers if "same_body_as" in said}
    assert len(reported) >= len(deliveries) - len(pings) - len(bodies) > 0
