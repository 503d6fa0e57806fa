"""A value of a type, made up: for the commands that a summary gives a person to type."""

from datetime import UTC, datetime
from typing import Any

import msgspec


def sample(hint: Any, of: str, name: str = "") -> bytes:
    """Return JSON of the type `hint`, on one line, for somebody to send: an order is {"id": "o-1", "amount": 5}.

    `of` is what it is one of ("orders"); an ID begins with its first letter.
    """
    return msgspec.json.format(msgspec.json.encode(_sample(hint, of, name)), indent=0)


def _sample(hint: Any, of: str, name: str = "") -> Any:
    info = msgspec.inspect.type_info(hint)
    match info:
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() | msgspec.inspect.TypedDictType():
            return {
                field.encode_name: _sample_of(field.type, of, field.name)
                for field in info.fields
                if field.required
            }
        case _:
            return _sample_of(info, of, name)


def _sample_of(info: msgspec.inspect.Type, of: str, name: str) -> Any:
    match info:
        case msgspec.inspect.StrType():
            return f"{of[:1] or 'x'}-1" if name in ("id", "") else f"{name} 1"
        case msgspec.inspect.IntType():
            return 5
        case msgspec.inspect.FloatType() | msgspec.inspect.DecimalType():
            return 5.5
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.ListType() | msgspec.inspect.SetType() | msgspec.inspect.VarTupleType():
            return [_sample_of(info.item_type, of, name)]
        case msgspec.inspect.UnionType():
            return _sample_of(info.types[0], of, name)
        case msgspec.inspect.DateTimeType():
            return datetime.now(UTC).isoformat(timespec="seconds")
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() | msgspec.inspect.TypedDictType():
            return _sample(info.cls, of, name)
        case msgspec.inspect.NoneType():
            return None
        case _:
            return {}
