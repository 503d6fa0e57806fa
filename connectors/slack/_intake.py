"""From a payload to its answer: made durable first, answered second.

Slack waits three seconds. An event that got no 2xx by then comes again, three times in all, and is lost after that;
an interaction comes once, and the person sees that it failed. So the commit has two of the three seconds, and when it
does not come the answer is a failure: the only copy is then Slack's, or the person's who clicks again.
"""

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from refold.connectors.slack._acks import Ack, Acks
from refold.connectors.slack._asking import find_answer
from refold.connectors.slack._identity import click_id, mapping_of, team_of, text_of, workflow_id
from refold.connectors.slack._kinds import Delivery, is_own_event
from refold.connectors.slack._payloads import Payload, first_action
from refold.connectors.slack._threads import in_thread
from refold.core import App, NotAccepted, Send, Start, Workflow

log: Final = logging.getLogger("refold.slack")

# Slack's three seconds, less the way there and back.
ANSWER_WITHIN: Final = 2.6
COMMIT_WITHIN: Final = 2.0

EMPTY: Final = Ack()
NOT_DURABLE: Final = Ack(503, b'{"error":"not durable, send it again"}')
LISTENER_BROKE: Final = Ack(500, b'{"error":"the listener failed"}')

Match = str | re.Pattern[str]
AckBody = str | dict[str, Any] | None
Answering = AckBody | Callable[[Any], AckBody | Awaitable[AckBody]]


class Handler(msgspec.Struct, frozen=True):
    """A workflow that is declared for payloads of one kind, and what Slack gets as the answer to them."""

    kind: str
    matches: Callable[[dict[str, Any]], bool]
    workflow: Workflow[..., Any]
    parameter: str
    payload: type[Payload]
    ack: Answering
    label: str


class Intake:
    """Takes the payloads of one Slack app: HTTP and Socket Mode end here."""

    def __init__(
        self,
        app: App,
        label: str,
        listeners: Callable[[], Workflow[..., Any]],
        ask_bolt: Callable[[dict[str, Any]], Awaitable[Ack]],
        *,
        own_events: bool,
    ) -> None:
        self._app = app
        self._label = label
        self._listeners = listeners
        self._ask_bolt = ask_bolt
        self._own_events = own_events
        self.handlers: list[Handler] = []
        self.acks = Acks()
        self.answer_within, self.commit_within = ANSWER_WITHIN, COMMIT_WITHIN
        self.steps_run_here = False  # a worker is in this process: an ack may come out of a listener's step

    async def take(self, delivery: Delivery, *, since: float | None = None) -> Ack:
        """Make a payload durable and return Slack's answer; never later than Slack waits from `since` on.

        A 2xx means that it is in the log, that it was before, or that there is nothing to be done about it.
        """
        deadline = (time.monotonic() if since is None else since) + self.answer_within
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await self._take(delivery, deadline)
        except NotAccepted as error:
            log.warning("a payload was not durable in time, Slack gets no 200: %s", error)
        except TimeoutError:
            log.warning(
                "there was no answer to a payload in time, Slack gets no 200: does a function for its `ack` take long?"
            )
        except Exception:
            log.exception("a payload was not taken; Slack gets no 200")
        return NOT_DURABLE

    async def _take(self, delivery: Delivery, deadline: float) -> Ack:
        body = delivery.body
        match delivery.kind:
            case "handshake":
                return Ack(200, msgspec.json.encode({"challenge": text_of(body, "challenge")}))
            case "ssl_check":
                return EMPTY
            case "rate_limited":
                log.error("Slack drops events of team %s: more than 30,000 in an hour", team_of(body))
                return EMPTY
            case "":
                log.warning(
                    "Slack sent a payload of the unknown type %r; nothing was started", body.get("type")
                )
                return EMPTY
            case "question":
                return await self._ask_bolt(body)
            case "event":
                return await self._take_event(delivery)
            case "action" if (answer := find_answer(first_action(body), body)) is not None:
                return await self._take_answer(answer, click_id(body, first_action(body)))
            case _:
                return await self._take_interaction(delivery, deadline)

    async def _take_event(self, delivery: Delivery) -> Ack:
        if not self._own_events and is_own_event(delivery.body):
            return EMPTY
        handler = self._handler_of(delivery)
        await self._start(delivery, handler, workflow_id("event", delivery.body))
        return EMPTY

    async def _take_answer(self, answer: tuple[str, str, bytes], id: str) -> Ack:
        to, topic, value = answer
        [accepted] = await self._app.aaccept(
            [Send(to=to, id=id, topic=topic, value=value)], label=self._label, timeout=self.commit_within
        )
        if accepted.ended:
            log.info("an answer to %s came after its end", to)
        return EMPTY

    async def _take_interaction(self, delivery: Delivery, deadline: float) -> Ack:
        handler = self._handler_of(delivery)
        id = workflow_id(delivery.kind, delivery.body)
        if handler is None:
            return await self._run_listeners(delivery, id, deadline)
        answer = await _answer_of(handler, delivery.body)
        if isinstance(answer, dict) and answer.get("response_action") == "errors":
            return _ack_of(answer)  # the modal stays open, and what comes next is another submission
        await self._start(delivery, handler, id)
        return _ack_of(answer)

    async def _run_listeners(self, delivery: Delivery, id: str, deadline: float) -> Ack:
        with self.acks.expected(id) as told:
            is_new = await self._start(delivery, None, id)
            if not is_new or not self.steps_run_here:
                return EMPTY
            left = deadline - time.monotonic() - 0.1
            done, _ = await asyncio.wait([told], timeout=max(0.0, left))
            return told.result() if done else EMPTY

    async def _start(self, delivery: Delivery, handler: Handler | None, id: str) -> bool:
        """Start the payload's workflow, once ever; durable on return. Return whether it is new."""
        workflow = self._listeners() if handler is None else handler.workflow
        parameter = "payload" if handler is None else handler.parameter
        input = msgspec.json.encode({parameter: {"body": Raw(delivery.raw)}})
        [accepted] = await self._app.aaccept(
            [Start(workflow=workflow, id=id, input=input)], label=self._label, timeout=self.commit_within
        )
        return bool(accepted.new)

    def _handler_of(self, delivery: Delivery) -> Handler | None:
        for handler in self.handlers:
            if handler.kind == delivery.kind and handler.matches(delivery.body):
                return handler
        return None


async def _answer_of(handler: Handler, body: dict[str, Any]) -> AckBody:
    if not callable(handler.ack):
        return handler.ack
    payload = handler.payload(body=body)
    if inspect.iscoroutinefunction(handler.ack):
        answer: Any = await handler.ack(payload)
    else:
        answer = await in_thread(handler.ack, payload)
    return answer  # type: ignore[no-any-return]


def _ack_of(answer: AckBody) -> Ack:
    if answer is None or answer == "":
        return EMPTY
    return Ack(200, msgspec.json.encode({"text": answer} if isinstance(answer, str) else answer))


def fits(match: Match, text: str) -> bool:
    """Say whether a text is the one that was asked for, or is found by the pattern."""
    return match == text if isinstance(match, str) else match.search(text) is not None


def any_action_fits(match: Match, body: dict[str, Any]) -> bool:
    """Say whether the element that a `block_actions` payload is about has the `action_id`."""
    found: Sequence[Any] = [first_action(body)]
    return any(fits(match, text_of(one, "action_id") or text_of(one, "name")) for one in found)


def view_fits(match: Match, closed: bool, body: dict[str, Any]) -> bool:
    """Say whether a view has the `callback_id`, and was closed rather than submitted where that is asked."""
    wanted = "view_closed" if closed else "view_submission"
    return text_of(body, "type") == wanted and fits(match, text_of(mapping_of(body, "view"), "callback_id"))
