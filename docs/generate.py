"""Writes docs/configuration.md from the code: every option with its type and default, every environment variable.

`make docs` runs it; a test fails when the page is not what this prints, when an option has no description here, and
when code reads a variable that is not described here.
"""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

import refold
from refold.connectors import cron, kafka, nats, slack, webhook
from refold.core.cli._main import cli

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"

VARIABLES = {
    "REFOLD_DATABASE_URL": "The Postgres to use, as a libpq URL (`postgresql://user@host:5432/name`) or conninfo "
    "string. An `App(database_url=...)` wins over it. With neither, the embedded Postgres under `.refold/` is used.",
    "REFOLD_KAFKA_BOOTSTRAP": "The Kafka brokers, `host:port` and commas, of consumers that don't name their own. "
    "Without it `refold dev` starts a development broker.",
    "REFOLD_NATS_URL": "The NATS server, `nats://host:port`, of consumers that don't name their own.",
    "REFOLD_HTTP": "`HOST:PORT` at which `refold worker` (or your own program) serves webhook endpoints, under "
    "/hooks, and Slack mounts, under /slack. `refold dev` takes 127.0.0.1:8000 without it (with Slack mounts only: "
    ":3000), or the next port that is free.",
}

DEVELOPMENT_VARIABLES = {
    "REFOLD_REQUIRE_ALL": "Set by CI: a broker, a Postgres version or PgBouncer that is missing is a failure, "
    "not a skipped test.",
    "REFOLD_TEST_KAFKA": "`host:port` of a broker to run the Kafka tests against.",
    "REFOLD_TEST_POSTGRES": "The major version to test on: 18 (default, embedded), 17, 16, 15, 14.",
}

DESCRIPTIONS: dict[str, dict[str, str]] = {
    "refold.App": {
        "name": "The app's name, for logs and `refold dev`.",
        "database_url": "The Postgres to use; default: `REFOLD_DATABASE_URL`, else the embedded one.",
        "threads": "How many `def` steps run at the same time in this process.",
        "concurrency": "How many workflows a worker has in hand at once; those that wait don't count.",
    },
    "refold.step": {
        "transaction": "The function takes a psycopg connection first; its SQL and its record commit together.",
        "name": "What the log calls the step; default: the function's name. Keep it when you rename the function.",
        "retries": "How many more tries there are after the first. Attempts are recorded.",
        "retry_delay": "The pause before the second try.",
        "backoff": "Each further pause is this many times as long.",
        "max_delay": "No pause is longer than this.",
        "jitter": "The share of each pause that is left out at random, so that many don't return together.",
        "retry_if": "Called with the error; False means that trying again makes no sense.",
        "timeout": "How long one try may take.",
        "compare": "What a replay compares with the record: `args` (name and arguments) or only the `name`.",
    },
    "App.workflow": {
        "name": "What the log calls the workflow; default: the function's name.",
    },
    "refold.connectors.kafka.consumer": {
        "topics": "The topics to read, one or several.",
        "name": "The consumer's identity, part of every workflow ID; default: the workflow's name. "
        "A new name is a new consumer, which reads from `start` on.",
        "group": "Kafka's consumer group; default: the name. May be changed freely.",
        "bootstrap_servers": "The brokers; default: `REFOLD_KAFKA_BOOTSTRAP`.",
        "start": "Where a consumer begins that has no position yet.",
        "config": "Settings for librdkafka, as they are (SASL, TLS, ...). Those that would break the promise are "
        "refused by name.",
        "batch_size": "How many records are handed over in one transaction, at most.",
        "max_in_flight": "At about so many runnable workflows (those that wait don't count) it pauses reading.",
        "ordering": "Which records run one after the other: `none`, those of a `partition`, or those of a `key`.",
        "dead_letter": "A topic that gets the records that failed for good.",
        "dedup": "A header whose value is a record's identity: of all records of a topic with the same one, "
        "the first runs.",
    },
    "refold.connectors.kafka.signal": {
        "topics": "The topics to read, one or several.",
        "to": "The ID of the workflow that a record is for: a function of the message. None: it is for nobody.",
        "topic": "The topic that the workflow receives: `refold.recv(topic)`.",
        "body": "The type that the record's value must have.",
        "value": "What is sent: a function of the message; default: the record's value.",
        "name": "The consumer's identity; default: the workflow's name and the topic.",
        "group": "Kafka's consumer group; default: the name. May be changed freely.",
        "bootstrap_servers": "The brokers; default: `REFOLD_KAFKA_BOOTSTRAP`.",
        "start": "Where a consumer begins that has no position yet.",
        "config": "Settings for librdkafka, as for `kafka.consumer`.",
        "batch_size": "How many records are handed over in one transaction, at most.",
        "max_in_flight": "At about so many runnable workflows of its own (records that were no message) it pauses.",
        "dead_letter": "A topic that gets the records that could not be delivered.",
        "dedup": "A header whose value is a record's identity, as for `kafka.consumer`.",
    },
    "refold.connectors.kafka.Producer": {
        "name": "What the log calls it. Keep it.",
        "bootstrap_servers": "The brokers; default: `REFOLD_KAFKA_BOOTSTRAP`.",
        "config": "Settings for librdkafka, as they are. Those that would break the promise are refused by name.",
    },
    "refold.connectors.cron.schedule": {
        "expression": "Five fields, six with the second in front, or `@hourly` and the like. One of `expression`, "
        "`every` and `at` is given.",
        "name": "The schedule's identity, part of every workflow ID; default: the workflow's name. Keep it.",
        "timezone": "The zone of the expression, by its place: `Europe/Berlin`.",
        "every": "A fixed distance, counted from 1970 UTC.",
        "at": "One time, or several; with a zone each.",
        "start": "No tick before it.",
        "end": "No tick after it.",
        "catch_up": "How late a tick that was missed is still fired; zero: not at all.",
        "missed": "Which of the missed ticks: the `latest` one, or `all` of them, 1,000 at most.",
        "overlap": "What a tick does while an earlier one's workflow has not ended: `skip`, `buffer_one`, "
        "`buffer_all`, `cancel_other`, `allow`.",
        "jitter": "Each start is delayed by a part of it, the same for the same tick.",
        "paused": "A new schedule fires nothing before somebody resumes it.",
    },
    "refold.connectors.nats.consumer": {
        "stream": "The JetStream stream to read.",
        "name": "The consumer's identity, part of every workflow ID; default: the workflow's name. Keep it.",
        "durable": "What JetStream calls the consumer; default: the name. It is made if it is not there.",
        "subject": "Only messages of this subject; default: all of the stream.",
        "servers": "The servers; default: `REFOLD_NATS_URL`.",
        "options": "What `nats.connect` takes: `user_credentials`, `tls`, ...",
        "start": "Where a durable consumer begins that is made: with `all` messages, or only `new` ones.",
        "ack_wait": "After it JetStream delivers again what was not acknowledged.",
        "batch_size": "How many messages are handed over in one transaction, at most.",
        "max_in_flight": "At about so many runnable workflows (those that wait don't count) no more are asked for.",
    },
    "refold.connectors.webhook.post": {
        "path": "Where the endpoint is, under the mount (`/hooks` in `refold dev`).",
        "verify": "Who may send: `webhook.standard`, `github`, `stripe`, `slack`, `shopify`, `hmac`, `bearer`, "
        "or `none`, written out.",
        "id": "What a delivery is known by; default: the sender's own ID, where the verifier knows it.",
        "name": "The endpoint's identity, part of every workflow ID. Keep it.",
        "wait": "Answer with the result if it comes within this time.",
        "on_inflight": "What a duplicate gets while the first one runs, with `wait`: it joins, or 409.",
        "dedup": '`"body"`: equal bodies are one workflow, whatever their IDs.',
        "max_body": "The largest body in bytes; default 1 MiB, 25 MiB from GitHub.",
        "timeout": "How long Postgres may take before the sender gets 503.",
        "body_timeout": "How long a body may take to come.",
        "handshake": "The answer to a sender's question in the query: `webhook.echo(...)`.",
    },
    "refold.connectors.webhook.signal": {
        "path": "Where the endpoint is, under the mount (`/hooks` in `refold dev`).",
        "to": "The ID of the workflow that a delivery is for: a function of the delivery.",
        "topic": "The topic that the workflow receives: `refold.recv(topic)`.",
        "verify": "Who may send: `webhook.standard`, `github`, `stripe`, `slack`, `shopify`, `hmac`, `bearer`, "
        "or `none`, written out.",
        "body": "The type that the body must have.",
        "value": "What is sent: a function of the delivery; default: the body.",
        "id": "What a delivery is known by; default: the sender's own ID, where the verifier knows it.",
        "name": "The endpoint's identity; default: the workflow's name and the topic.",
        "dedup": '`"body"`: equal bodies are one workflow, whatever their IDs.',
        "max_body": "The largest body in bytes; default 1 MiB, 25 MiB from GitHub.",
        "timeout": "How long Postgres may take before the sender gets 503.",
        "body_timeout": "How long a body may take to come.",
        "handshake": "The answer to a sender's question in the query: `webhook.echo(...)`.",
    },
    "refold.connectors.webhook.hmac": {
        "secret": "The secret, `env:NAME`, or several while they are rotated.",
        "header": "The header that holds the signature.",
        "prefix": "What stands in front of it there, like `sha256=`.",
        "encoding": "`hex` or `base64`.",
        "algorithm": "`sha1`, `sha256`, `sha384` or `sha512`.",
        "template": "What is signed: `{body}`, with `{timestamp}` and `{id}` where the sender has them in.",
        "id_header": "The header that holds `{id}`.",
        "timestamp_header": "The header that holds `{timestamp}`, in seconds.",
        "tolerance": "How far the timestamp may be off.",
    },
    "refold.connectors.webhook.asgi": {
        "app": "The app whose endpoints they are.",
        "run_worker": "Run a worker with the server, where this is served by itself.",
        "max_in_memory": "How many bytes of bodies there may be in memory at once.",
        "openapi": "Serve a description at /openapi.json.",
    },
    "refold.connectors.slack.mount": {
        "app": "The refold app.",
        "bolt": "The slack-bolt app, `App` or `AsyncApp`. Its listeners now run to their end before it answers.",
        "name": "The mount's identity: what `refold list` calls its workflows, and its part of the path when there are "
        "several.",
        "path": "Where `refold dev` and `refold worker --http` serve it.",
        "signing_secret": "One secret or several, while they are rotated; default: bolt's.",
        "app_token": "Use Socket Mode as well, with this token (`xapp-...`).",
        "retries": "How often the step with bolt's listeners is tried again when one failed.",
        "own_events": "Take the events of this app's own bot, too.",
        "max_body": "How many bytes a request may have.",
    },
}

SECTIONS: dict[str, Callable[..., Any]] = {
    "refold.App": refold.App.__init__,
    "refold.step": refold.step,
    "App.workflow": refold.App.workflow,
    "refold.connectors.kafka.consumer": kafka.consumer,
    "refold.connectors.kafka.signal": kafka.signal,
    "refold.connectors.kafka.Producer": kafka.Producer.__init__,
    "refold.connectors.cron.schedule": cron.schedule,
    "refold.connectors.nats.consumer": nats.consumer,
    "refold.connectors.webhook.post": webhook.post,
    "refold.connectors.webhook.signal": webhook.signal,
    "refold.connectors.webhook.hmac": webhook.hmac,
    "refold.connectors.webhook.asgi": webhook.asgi,
    "refold.connectors.slack.mount": slack.mount,
}


def variables_in_code(*folders: str) -> set[str]:
    """Return every REFOLD_ variable that these folders' code names."""
    return {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bREFOLD_[A-Z_]+[A-Z]\b", path.read_text())
    }


def options_of(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield what a user can pass."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in ("self", "fn"):
            yield parameter


def page() -> str:
    """Return the whole page."""
    parts = [
        "# Configuration\n",
        "<!-- Generated by docs/generate.py: run `make docs`. -->\n",
        "Every option of what an app declares, every environment variable, every command.\n",
        "## Environment variables\n",
        _table(("variable", "meaning"), [(f"`{name}`", text) for name, text in sorted(VARIABLES.items())]),
    ]
    for title, function in SECTIONS.items():
        parts += [f"## `{title}`\n", _options_table(title, function)]
    parts += ["## The command line\n", "Every command also takes `--json` and `--debug`.\n"]
    parts += [_commands_table()]
    parts += [
        "## For developing refold itself\n",
        _table(
            ("variable", "meaning"),
            [(f"`{name}`", text) for name, text in sorted(DEVELOPMENT_VARIABLES.items())],
        ),
    ]
    return "\n".join(parts)


def _options_table(title: str, function: Callable[..., Any]) -> str:
    described = DESCRIPTIONS[title]
    rows = []
    for parameter in options_of(function):
        if parameter.name not in described:
            raise SystemExit(
                f"{title} has an option {parameter.name} that docs/generate.py does not describe"
            )
        name = f"`*{parameter.name}`" if parameter.kind is parameter.VAR_POSITIONAL else f"`{parameter.name}`"
        rows.append((name, _type(parameter), _default(parameter), described[parameter.name]))
    gone = set(described) - {parameter.name for parameter in options_of(function)}
    if gone:
        raise SystemExit(f"docs/generate.py describes {', '.join(sorted(gone))}, which {title} does not have")
    return _table(("option", "type", "default", "meaning"), rows)


def _type(parameter: inspect.Parameter) -> str:
    hint = parameter.annotation
    text = hint if isinstance(hint, str) else typing.cast(str, inspect.formatannotation(hint))
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z])", r"\1", text)
    return "`" + text.replace("|", "\\|") + "`"


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "" if parameter.kind is parameter.VAR_POSITIONAL else "required"
    if isinstance(parameter.default, timedelta):
        return f"{parameter.default.total_seconds():g} s"
    return "none" if parameter.default is None else f"`{parameter.default!r}`"


def _commands_table() -> str:
    rows = []
    for name, command in _commands(cli):
        arguments = " ".join(_argument(p) for p in command.params if isinstance(p, click.Argument))
        options = ", ".join(
            f"`{parameter.opts[0]}`"
            for parameter in command.params
            if isinstance(parameter, click.Option) and parameter.opts[0] not in ("--json", "--debug")
        )
        rows.append(
            (f"`refold {name} {arguments}`".replace(" `", "`"), options, command.get_short_help_str(200))
        )
    return _table(("command", "options", "what it does"), rows)


def _argument(argument: click.Argument) -> str:
    name = argument.make_metavar(click.Context(cli))
    return name.replace("|", "\\|")


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        elif command is not None:
            yield f"{prefix}{name}", command


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
