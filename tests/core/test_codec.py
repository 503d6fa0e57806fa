"""The round-trip rule: what the log gives back is what was put in, or it is not put in."""

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.core._codec import CallCodec, ValueCodec, digest_of, encode_message, show_difference
from refold.core._definitions import step
from refold.core._errors import DecodeFailed, ValueRefused

T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Address(TypedDict):
    city: str


class Order(msgspec.Struct):
    id: str
    tags: set[str] = msgspec.field(default_factory=set)
    at: datetime | None = None


class Tagged(msgspec.Struct, tag=True):
    n: int


class Other(msgspec.Struct, tag=True):
    n: int


@dataclass
class Data:
    amount: Decimal
    order: Order


class Silent(msgspec.Struct, eq=False):
    n: int


@dataclass(eq=False)
class Bare:
    n: int


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MOMENTS = st.datetimes(
    min_value=datetime(1900, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
)


@given(JSON)
def test_json_s_own_types_need_no_hint(value: Any) -> None:
    codec = ValueCodec(Any, "it")
    assert codec.decode(codec.encode(value)) == value


@given(st.builds(Order, st.text(), st.sets(st.text()), st.none() | MOMENTS))
def test_a_struct_comes_back_equal(order: Order) -> None:
    codec = ValueCodec(Order, "it")
    assert codec.decode(codec.encode(order)) == order


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 5),
        (int, 2**80),
        (float, 5.5),
        (float, 5),  # Python's types let an int be a float; code sees 5.0 from the first run on
        (str | None, None),
        (bytes, b"\x00\xff"),
        (Colour, Colour.RED),
        (Point, Point(1, 2)),
        (Address, {"city": "Aachen"}),
        (Data, Data(Decimal("1.10"), Order("1"))),
        (Tagged | Other, Other(1)),
        (tuple[int, str], (1, "x")),
        (dict[int, str], {1: "x"}),
        (set[str], {"a", "b"}),
        (UUID, UUID(int=5)),
        (date, date(2026, 1, 1)),
        (timedelta, timedelta(days=2)),
        (Literal["a", "b"], "a"),
        (Silent, Silent(1)),
        (Bare, Bare(1)),
        (list[Bare], [Bare(1)]),
        (dict[str, Any], {"a": [1, {"b": None}]}),
    ],
    ids=lambda it: "a set" if isinstance(it, set) else str(it),  # a set's text differs by process
)
def test_what_comes_back_the_same_is_taken(hint: Any, value: Any) -> None:
    codec = ValueCodec(hint, "it")
    back = codec.decode(codec.encode(value))
    if not isinstance(value, Silent | Bare | list):
        assert back == value


class Box(msgspec.Struct, Generic[T]):
    inside: T


@dataclass
class Crate(Generic[T]):
    inside: T


def test_generic_types_are_taken() -> None:
    assert (
        ValueCodec(Box[Order], "it").encode(Box(Order("1"))) == b'{"inside":{"id":"1","tags":[],"at":null}}'
    )
    assert ValueCodec(Crate[int], "it").encode(Crate(1)) == b'{"inside":1}'
    with pytest.raises(ValueRefused):
        ValueCodec(Box[int], "it").encode(Box("x"))


class Sub(str):
    pass


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, math.nan),
        (float, math.inf),
        (list[float], [1.0, math.nan]),
        (int, "5"),
        (int, None),
        (str, Sub("x")),
        (list[int], (1, 2)),
        (dict[str, int], defaultdict(int, a=1)),
        (Order, {"id": "1"}),
        (dict[str, Any], {"a": (1, 2)}),
        (dict[str, Any], {"a": {1, 2}}),
        (list[Any], [Order("1")]),
        (Any, {1: "x"}),
        (Any, {"a": math.inf}),
        (Any, Order("1")),
        (Any, datetime(2026, 1, 1, tzinfo=UTC)),
        (str, "\ud800"),
    ],
    ids=repr,
)
def test_what_would_come_back_as_something_else_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(ValueRefused, match="it: "):
        ValueCodec(hint, "it").encode(value)


def test_without_a_hint_a_tuple_is_a_list_from_the_first_run_on() -> None:
    codec = ValueCodec(Any, "it")
    assert codec.decode(codec.encode((1, (2,)))) == [1, [2]]


def test_the_canonical_form_is_one_for_all_orders_and_for_added_optional_fields() -> None:
    codec = ValueCodec(Order, "it")
    forms = {
        codec.canonical(raw)
        for raw in (b'{"id":"1","tags":["a","b"]}', b'{"tags": ["b", "a"], "id": "1", "at": null}')
    }
    assert len(forms) == 1


def test_arguments_are_an_object_by_parameter_with_defaults_written_out() -> None:
    def call(a: int, b: str = "x", *rest: int, c: bool = True, **more: float) -> None: ...

    hints = {"a": int, "b": str, "rest": int, "c": bool, "more": float}
    codec = CallCodec(call, "call", hints=hints)
    raw = codec.encode((1,), {})
    assert raw == b'{"a":1,"b":"x","rest":[],"c":true,"more":{}}'
    assert codec.decode(raw) == ((1, "x"), {"c": True})
    raw = codec.encode((1, "y", 2, 3), {"c": False, "z": 0.5})
    assert codec.decode(raw) == ((1, "y", 2, 3), {"c": False, "z": 0.5})
    assert codec.decode(b'{"a":1}') == ((1, "x"), {"c": True})  # recorded before the others were added
    assert codec.canonical(b'{"a":1}') == codec.canonical(codec.encode((1,), {}))


def test_names_that_no_struct_could_have_are_fine() -> None:
    @step
    def call(self, _private, type) -> None:  # type: ignore[no-untyped-def]
        ...

    raw = call.encode_args((1, 2, 3), {})
    assert raw == b'{"self":1,"_private":2,"type":3}'
    assert call.decode_args(raw) == ((1, 2, 3), {})


def test_a_wrong_call_fails_as_it_would_without_refold() -> None:
    @step
    def call(a: int) -> None: ...

    with pytest.raises(TypeError, match="step 'call': missing a required argument: 'a'"):
        call.encode_args((), {})
    with pytest.raises(TypeError, match="step 'call': got an unexpected keyword argument 'b'"):
        call.encode_args((1,), {"b": 2})


def test_a_mutable_default_is_made_anew_for_each_call() -> None:
    @step
    def call(names: list[str] = []) -> None:  # noqa: B006
        ...

    first, second = call.decode_args(b"{}")[0], call.decode_args(b"{}")[0]
    assert first == second == ([],)
    assert first[0] is not second[0]


@pytest.mark.parametrize("raw", [b"", b"5", b"{", b'{"a":"x"}', b"{}", b'{"a":1}\xff', b"\xff"])
def test_bytes_that_do_not_fit_are_one_kind_of_error(raw: bytes) -> None:
    @step
    def call(a: int) -> None: ...

    with pytest.raises(DecodeFailed, match="the input of step 'call'"):
        call.decode_args(raw)


def test_a_digest_is_the_same_for_the_same_values_in_every_process() -> None:
    canonical = ValueCodec(Order, "it").canonical(b'{"tags":["b","a"],"id":"1"}')
    assert canonical == b'{"id":"1","tags":["a","b"],"at":null}'
    assert digest_of(canonical) == "4b56161d7308b66d6dad9f6a2786e93d"


def test_a_message_is_checked_by_its_own_type() -> None:
    assert encode_message(True, "it") == b"true"
    assert encode_message(Order("1"), "it") == b'{"id":"1","tags":[],"at":null}'
    with pytest.raises(ValueRefused):
        encode_message({1: 2}, "it")
    with pytest.raises(ValueRefused):
        encode_message(object(), "it")


def test_a_difference_is_shown_by_place_and_cut_short() -> None:
    old, new = b'{"a":{"b":[1,2]},"c":1}', b'{"a":{"b":[1,3]},"d":"%s"}' % (b"x" * 200)
    assert show_difference(old, new).splitlines() == [
        "  a.b[1]: 2 in history, 3 in the code",
        "  c: 1 in history, nothing in the code",
        f"  d: nothing in history, '{'x' * 76}... in the code",
    ]
