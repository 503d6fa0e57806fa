"""Signatures, identities and payloads of Slack, without a server."""

import contextlib
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from slack_bolt import BoltRequest

from fixtures.slack import APP, BOT_ID, BOT_USER, SECRET, TEAM
from refold.connectors.slack import (
    Action,
    CallFailed,
    Event,
    ListenerFailed,
    NotAuthorized,
    View,
    Workspace,
    workflow_id,
)
from refold.connectors.slack import button as make_button
from refold.connectors.slack._asking import addressed, find_answer
from refold.connectors.slack._identity import click_id
from refold.connectors.slack._kinds import Unreadable, delivery_of, is_own_event, read_request
from refold.connectors.slack._signature import is_signed

# From Slack's documentation: https://docs.slack.dev/authentication/verifying-requests-from-slack
STAMP = b"1531420618"
BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SIGNATURE = b"v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
NOW = int(STAMP) + 10.0


def test_slacks_own_example_is_signed() -> None:
    assert is_signed([SECRET.encode()], STAMP, SIGNATURE, BODY, now=NOW)


@given(st.integers(0, len(BODY) * 8 - 1))
def test_a_body_with_one_bit_changed_is_not(bit: int) -> None:
    changed = bytearray(BODY)
    changed[bit // 8] ^= 1 << bit % 8
    assert not is_signed([SECRET.encode()], STAMP, SIGNATURE, bytes(changed), now=NOW)


@given(st.integers(0, len(SIGNATURE) * 8 - 1))
def test_a_signature_with_one_bit_changed_is_not(bit: int) -> None:
    changed = bytearray(SIGNATURE)
    changed[bit // 8] ^= 1 << bit % 8
    assert not is_signed([SECRET.encode()], STAMP, bytes(changed), BODY, now=NOW)


@given(st.binary(max_size=20), st.binary(max_size=80))
def test_junk_in_the_headers_is_only_wrong(stamp: bytes, signature: bytes) -> None:
    assert not is_signed([SECRET.encode()], stamp, signature, BODY, now=NOW)


def test_an_old_request_and_one_from_the_future_are_refused() -> None:
    secrets = [SECRET.encode()]
    assert is_signed(secrets, STAMP, SIGNATURE, BODY, now=int(STAMP) + 300.0)
    assert not is_signed(secrets, STAMP, SIGNATURE, BODY, now=int(STAMP) + 301.0)
    assert not is_signed(secrets, STAMP, SIGNATURE, BODY, now=int(STAMP) - 301.0)
    assert not is_signed(secrets, None, SIGNATURE, BODY, now=NOW)
    assert not is_signed(secrets, STAMP, None, BODY, now=NOW)
    assert not is_signed([], STAMP, SIGNATURE, BODY, now=NOW)


def test_any_of_the_secrets_will_do_while_they_are_rotated() -> None:
    assert is_signed([b"new", SECRET.encode()], STAMP, SIGNATURE, BODY, now=NOW)
    assert is_signed([SECRET.encode(), b"old"], STAMP, SIGNATURE, BODY, now=NOW)
    assert not is_signed([b"new", b"old"], STAMP, SIGNATURE, BODY, now=NOW)


def test_ids_say_what_was_sent() -> None:
    event = {"api_app_id": "A1", "team_id": "T1", "event_id": "Ev1", "type": "event_callback"}
    assert workflow_id("event", event) == "slack:A1:T1:Ev1"
    command = {"api_app_id": "A1", "team_id": "T1", "command": "/x", "trigger_id": "1.2.a"}
    assert workflow_id("command", command) == "slack:A1:T1:command:1.2.a"
    click = {
        "api_app_id": "A1",
        "team": {"id": "T1"},
        "user": {"id": "U1"},
        "actions": [{"action_ts": "3.4", "block_id": "b", "action_id": "a"}],
    }
    assert workflow_id("action", click) == "slack:A1:T1:action:U1:3.4:b:a"
    org = {"api_app_id": "A1", "team": None, "enterprise": {"id": "E1"}, "trigger_id": "1.2.a"}
    assert workflow_id("shortcut", org) == "slack:A1:E1:shortcut:1.2.a"


def test_a_view_without_a_trigger_is_known_by_itself_its_hash_and_what_was_entered() -> None:
    def submitted(value: str, hash: str = "h") -> dict[str, Any]:
        state = {"values": {"b": {"a": {"value": value}}}}
        return {
            "type": "view_submission",
            "team": {"id": "T"},
            "view": {"id": "V1", "hash": hash, "state": state},
        }

    ids = [workflow_id("view", body) for body in (submitted("1"), submitted("2"), submitted("1", "h2"))]
    assert len(set(ids)) == 3
    assert workflow_id("view", submitted("1")) == ids[0]


texts = st.text(st.characters(codec="utf-8"), max_size=300)


@example({"api_app_id": "\U00010000" * 300, "team_id": "\U00010000" * 300})
@example(dict.fromkeys(("api_app_id", "team_id", "event_id", "trigger_id"), "\U00010000" * 20))
@given(
    st.dictionaries(
        st.sampled_from(["api_app_id", "team_id", "event_id", "trigger_id", "view", "type"]), texts
    )
)
def test_an_id_always_fits(body: dict[str, Any]) -> None:
    for kind in ("event", "action", "view"):
        assert 0 < len(workflow_id(kind, body).encode()) <= 512
        assert workflow_id(kind, body).startswith("slack:")


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
def test_two_events_never_share_an_id(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    def named(parts: tuple[str, str, str]) -> str:
        app, team, event = ((part or "x")[:40] for part in parts)
        return workflow_id("event", {"api_app_id": app, "team_id": team, "event_id": event})

    same = [(part or "x")[:40] for part in one] == [(part or "x")[:40] for part in other]
    assert (named(one) == named(other)) == same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
payload_keys = st.sampled_from(
    [
        "type",
        "team",
        "team_id",
        "event",
        "user",
        "actions",
        "view",
        "trigger_id",
        "command",
        "authorizations",
        "container",
    ]
)
odd_payloads = st.dictionaries(
    payload_keys, json_values | st.sampled_from(["block_actions", "view_submission"])
)


@given(odd_payloads)
def test_a_payload_of_any_shape_is_read_without_an_error(body: dict[str, Any]) -> None:
    delivery = delivery_of(body)
    workflow_id(delivery.kind or "other", body)
    is_own_event(body)
    for kind in (Event, Action, View):
        payload = kind(body=body)
        for name in (name for name in dir(kind) if not name.startswith("_")):
            getattr(payload, name)
    find_answer(Action(body=body).action, body)
    click_id(body, {})


@given(
    st.binary(max_size=200), st.sampled_from(["application/json", "application/x-www-form-urlencoded", ""])
)
def test_a_body_of_any_bytes_is_a_payload_or_unreadable(raw: bytes, content_type: str) -> None:
    with contextlib.suppress(Unreadable):
        read_request(content_type, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type": "event_callback", "x": "\xff"}',
        b"payload=%FF",
        b"[1]",
        b'{"a": 1',
        b"",
        b"&".join(b"a%d=1" % n for n in range(200)),
        b"[" * 100_000,
    ],
    ids=["not UTF-8", "form not UTF-8", "no object", "cut off", "empty", "too many fields", "deep"],
)
def test_a_broken_body_is_unreadable(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        read_request(
            "application/json" if raw.startswith((b"{", b"[")) else "application/x-www-form-urlencoded", raw
        )


def test_forms_are_read_as_slack_sends_them() -> None:
    command = read_request("application/x-www-form-urlencoded", BODY)
    assert (command.kind, command.body["command"], command.body["text"]) == (
        "command",
        "/webhook-collect",
        "",
    )
    click = {"type": "block_actions", "actions": [{"action_id": "ok", "value": "é"}]}
    read = read_request(
        "application/x-www-form-urlencoded", urlencode({"payload": json.dumps(click)}).encode()
    )
    assert (read.kind, read.body) == ("action", click)
    assert read_request("application/x-www-form-urlencoded", b"ssl_check=1&token=x").kind == "ssl_check"


def _event(**event: Any) -> dict[str, Any]:
    bots = [{"team_id": TEAM, "user_id": BOT_USER, "is_bot": True}]
    return {"api_app_id": APP, "authorizations": bots, "event": event}


@pytest.mark.parametrize(
    ("event", "is_own"),
    [
        ({"type": "message", "user": BOT_USER}, True),
        ({"type": "message", "user": "U1"}, False),
        ({"type": "message", "bot_id": BOT_ID, "app_id": APP}, True),
        ({"type": "message", "bot_id": BOT_ID, "bot_profile": {"app_id": APP}}, True),
        ({"type": "message", "bot_id": "B9", "app_id": "A9"}, False),
        ({"type": "message", "user": {"id": BOT_USER}}, False),
        ({"type": "member_joined_channel", "user": BOT_USER}, False),
        ({"type": "message", "subtype": "message_changed", "message": {"user": BOT_USER}}, True),
        ({"type": "message", "subtype": "message_changed", "message": {"user": "U1"}}, False),
        (
            {"type": "message", "subtype": "message_changed", "message": {"bot_id": BOT_ID, "app_id": APP}},
            True,
        ),
        ({"type": "message", "subtype": "message_deleted", "previous_message": {"user": BOT_USER}}, True),
        ({"type": "message", "user": "U1", "previous_message": {"user": BOT_USER}}, False),
        ({"type": "reaction_added", "user": BOT_USER}, True),
    ],
)
def test_the_apps_own_events_are_known(event: dict[str, Any], is_own: bool) -> None:
    assert is_own_event(_event(**event)) is is_own


def test_what_was_entered_in_a_modal_is_found_by_action_id() -> None:
    values = {
        "b1": {"title": {"type": "plain_text_input", "value": "hi"}},
        "b2": {"day": {"type": "datepicker", "selected_date": "2026-11-21"}},
        "b3": {"size": {"type": "static_select", "selected_option": {"value": "L"}}},
        "b4": {"tags": {"type": "checkboxes", "selected_options": [{"value": "a"}, {"value": "b"}]}},
        "b5": {"people": {"type": "multi_users_select", "selected_users": ["U1"]}},
        "b6": {"rooms": {"type": "multi_channels_select", "selected_channels": ["C1"]}},
        "b7": {"empty": {"type": "static_select", "selected_option": None}},
        "b8": {
            "notes": {"type": "rich_text_input", "rich_text_value": {"type": "rich_text", "elements": []}}
        },
        "b9": {"bill": {"type": "file_input", "files": [{"id": "F1"}]}},
    }
    view = View(body={"view": {"callback_id": "c", "state": {"values": values}}})
    assert view.values == {
        "title": "hi", "day": "2026-11-21", "size": "L", "tags": ["a", "b"], "people": ["U1"], "rooms": ["C1"],
        "empty": None, "notes": {"type": "rich_text", "elements": []}, "bill": [{"id": "F1"}],
    }  # fmt: skip


def test_a_button_is_told_the_workflow_that_posts_it() -> None:
    made = make_button("Yes", {"ok": True}, topic="t", style="primary")
    blocks = [{"type": "actions", "elements": [made, {"type": "button", "action_id": "other", "value": "x"}]}]
    posted = addressed({"blocks": blocks}, "w-1")
    element = posted["blocks"][0]["elements"][0]
    assert posted["blocks"][0]["elements"][1] == {"type": "button", "action_id": "other", "value": "x"}
    found = find_answer(element, {"user": {"id": "U1"}, "response_url": "http://r"})
    assert found is not None
    assert found[:2] == ("w-1", "t")
    assert json.loads(found[2])["value"] == {"ok": True}
    assert find_answer(made, {}) is None  # never posted by a workflow: nobody waits
    to_another = addressed({"blocks": [make_button("Yes", 1, topic="t", to="w-2")]}, "w-1")
    answer = find_answer(to_another["blocks"][0], {})
    assert answer is not None
    assert answer[:2] == ("w-2", "t")


def test_a_button_that_slack_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"has 3034 characters; Slack takes 2000"):
        make_button("Yes", "x" * 3000, topic="t")


def test_where_an_app_is_installed_is_read_from_the_payload() -> None:
    whole = {"team_id": "T1", "enterprise_id": "E1", "is_enterprise_install": True}
    body = {"team_id": "T1", "enterprise_id": "E1", "authorizations": [whole]}
    assert Event(body=body).workspace == Workspace("T1", "E1", True)
    assert Event(body={"team_id": "T1"}).workspace == Workspace("T1", None, False)


def test_it_is_where_bolt_looks_for_the_installation() -> None:
    """In a shared channel, in an organisation: as bolt reads the same payloads."""
    here = {"team_id": "T1", "enterprise_id": None, "is_enterprise_install": False}
    bodies: list[dict[str, Any]] = [
        {"team_id": "T9", "enterprise_id": "E9", "authorizations": [here], "event": {"team": "T9"}},
        {
            "team": None,
            "enterprise": {"id": "E1"},
            "user": {"id": "U1", "team_id": "T1"},
            "is_enterprise_install": True,
        },
        {"team": {"id": "T1", "enterprise_id": "E1"}, "type": "view_submission", "view": {"team_id": "T2"}},
        {"team": {"id": "T9"}, "view": {"app_installed_team_id": "T1"}},
        {"team": None, "view": {"team_id": "T1"}},
        {"team_id": "T1", "enterprise_id": "E1", "command": "/x", "is_enterprise_install": "true"},
        {"team_id": "T1", "enterprise_id": "E1", "authorizations": []},
        {},
    ]
    for body in bodies:
        bolts = BoltRequest(body=body, mode="socket_mode").context
        found = Workspace(bolts.team_id, bolts.enterprise_id, bool(bolts.is_enterprise_install))
        assert Event(body=body).workspace == found, body


def test_where_an_event_happened_is_found_in_what_it_is_about() -> None:
    reaction = {
        "type": "reaction_added",
        "user": "U1",
        "item": {"type": "message", "channel": "C7", "ts": "1.2"},
    }
    assert Event(body={"event": reaction}).channel == "C7"
    started = {
        "type": "assistant_thread_started",
        "assistant_thread": {"channel_id": "D1", "thread_ts": "3.4"},
    }
    assert Event(body={"event": started}).channel == "D1"
    assert Event(body={"event": started}).thread_ts == "3.4"
    modal = {"type": "view_submission", "response_urls": [{"response_url": "http://r", "channel_id": "C1"}]}
    assert View(body=modal).response_url == "http://r"


def test_a_button_in_two_views_is_two_buttons() -> None:
    def clicked(view: str) -> str:
        return click_id(
            {"container": {"type": "view", "view_id": view}, "user": {"id": "U1"}}, {"action_id": "a"}
        )

    assert clicked("V1") == clicked("V1")
    assert clicked("V1") != clicked("V2")


@pytest.mark.raises_error("CallFailed", "NotAuthorized", "ListenerFailed")
def test_errors_say_what_to_do() -> None:
    assert str(CallFailed("chat_postMessage", "missing_scope", "needs chat:write")) == (
        "Slack's chat_postMessage failed: missing_scope (needs chat:write). What the word means: docs.slack.dev, "
        "chat_postMessage"
    )
    assert str(NotAuthorized("workspace T1", "invalid_auth")) == (
        "bolt is not authorized for workspace T1: invalid_auth. auth.test failed, or the app is not installed there; "
        "the listeners have not run, and are tried again"
    )
    assert str(ListenerFailed(500, "")) == (
        "bolt answered 500, and no listener raised an error. Its log says which middleware did"
    )
