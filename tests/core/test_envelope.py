"""What connectors of others make starts with: the body checked against its type, and nothing raised for it."""

from typing import Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold import App
from refold.core import DefinitionRefused, Envelope, sample

T = TypeVar("T")


class Order(msgspec.Struct):
    id: str
    amount: int = 1


class Letter(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    value: T
    sender: str = ""


app = App("post")


@app.workflow
def on_order(letter: Letter[Order]) -> None: ...


@app.workflow
def on_bytes(letter: Letter[bytes]) -> None: ...


@app.workflow
def on_text(letter: Letter[str]) -> None: ...


@app.workflow
def on_two(letter: Letter[Order], copies: int) -> None: ...


@app.workflow
def on_plain(order: Order) -> None: ...


def test_a_body_becomes_the_value_and_what_is_beside_it_stays() -> None:
    start = Envelope(on_order, Letter, where="post").start(
        "post:1", b'{"id": "o-1", "amount": 5, "more": 1}', what="letter 1", sender="ada"
    )
    assert (start.workflow, start.id, start.failure) == (on_order, "post:1", None)
    assert msgspec.json.decode(start.input, type=dict[str, Letter[Order]]) == {
        "letter": Letter(value=Order("o-1", 5), sender="ada")
    }


def test_bytes_and_text_are_taken_as_they_came() -> None:
    raw = Envelope(on_bytes, Letter, where="post").start("post:1", b"\xff\x00", what="letter 1")
    assert msgspec.json.decode(raw.input, type=dict[str, Letter[bytes]])["letter"].value == b"\xff\x00"
    text = Envelope(on_text, Letter, where="post").start("post:1", "grün".encode(), what="letter 1")
    assert msgspec.json.decode(text.input, type=dict[str, Letter[str]])["letter"].value == "grün"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"no json", "JSON is malformed"),
        (b"", "Input data was truncated"),
        (b'{"amount": 1}', "Object missing required field `id`"),
        (b'{"id": "\xff"}', "it is not UTF-8 (invalid start byte at byte 8)"),
        (b'{"id": "o", "unknown": "\xff"}', "it is not UTF-8 (invalid start byte at byte 24)"),
    ],
    ids=["malformed", "empty", "incomplete", "string", "skipped"],
)
def test_a_body_that_does_not_fit_is_recorded_as_failed_with_its_bytes(body: bytes, problem: str) -> None:
    start = Envelope(on_order, Letter, where="post").start("post:1", body, what="letter 1", sender="ada")
    assert start.failure is not None
    assert start.failure.message.startswith("letter 1 does not fit the type that the code declares: ")
    assert problem in start.failure.message
    kept = msgspec.json.decode(start.input, type=dict[str, Letter[bytes]])["letter"]
    assert kept == Letter(value=body, sender="ada")


@given(st.binary(max_size=60) | st.text().map(str.encode))
def test_no_body_raises_and_every_input_is_json(body: bytes) -> None:
    for workflow in (on_order, on_bytes, on_text):
        start = Envelope(workflow, Letter, where="post").start("post:1", body, what="letter 1")
        assert isinstance(msgspec.json.decode(start.input), dict)
        start.input.decode("utf-8")


@pytest.mark.parametrize(
    ("workflow", "takes"),
    [(on_two, "letter: Letter, copies: int"), (on_plain, "order: Order")],
)
def test_a_workflow_with_other_parameters_is_refused(workflow: Any, takes: str) -> None:
    with pytest.raises(DefinitionRefused) as refused:
        Envelope(workflow, Letter, where="post.box('in')")
    assert str(refused.value).startswith(
        f"post.box('in'): it calls the workflow with one Letter, but {workflow.name!r} takes ("
    )
    assert f"Write `def {workflow.name}(letter: Letter[Order])`" in str(refused.value)


@pytest.mark.parametrize(
    ("hint", "made"),
    [
        (Order, b'{"id": "o-1"}'),
        (list[Order], b'[{"id": "o-1"}]'),
        (dict[str, Any], b"{}"),
        (str, b'"o-1"'),
        (int | None, b"5"),
        (tuple[bool, ...], b"[true]"),
        (float, b"5.5"),
    ],
)
def test_a_sample_is_of_its_type_on_one_line(hint: Any, made: bytes) -> None:
    assert sample(hint, "orders") == made
    msgspec.json.decode(made, type=hint)
