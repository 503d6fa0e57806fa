"""Columns of a flush as Postgres's binary arrays, and times as whole microseconds.

psycopg's own array dumper costs about a microsecond an item, which at a few dozen items a workflow would be
most of a flush. These know their element type beforehand.
Format: https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES, array_send().
"""

import struct
from collections.abc import Iterable
from typing import Any, Final

from psycopg import BaseConnection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format

# Postgres counts from 2000, the log from 1970.
_2000: Final = 946_684_800_000_000
_HEADER: Final = struct.Struct("!iiIii").pack
_LENGTH: Final = struct.Struct("!i").pack
_INT4: Final = struct.Struct("!ii").pack
_INT8: Final = struct.Struct("!iq").pack
_NULL: Final = _LENGTH(-1)
_TRUE: Final = _LENGTH(1) + b"\1"
_FALSE: Final = _LENGTH(1) + b"\0"


class Texts(list[str | None]):
    """A text[] parameter; an empty one is null."""


class Blobs(list[bytes | None]):
    """A bytea[] parameter; an empty one is null."""


class Ints(list[int | None]):
    """An int4[] parameter; an empty one is null."""


class Longs(list[int | None]):
    """An int8[] parameter; an empty one is null."""


class Flags(list[bool]):
    """A boolean[] parameter; an empty one is null."""


class Times(list[int | None]):
    """A timestamptz[] parameter, of microseconds since 1970 UTC; an empty one is null."""


def _array(element: int, count: int, items: Iterable[bytes]) -> bytes | None:
    # None: a typed NULL. An untyped one would make another statement, to be prepared once more, of each combination.
    if count == 0:
        return None
    return b"".join((_HEADER(1, 1, element, count, 1), *items))


class _ArrayDumper(Dumper):
    format = Format.BINARY
    element: int


class _TextsDumper(_ArrayDumper):
    oid, element = 1009, 25

    def dump(self, obj: Texts) -> Buffer | None:
        parts: list[bytes] = []
        for item in obj:
            if item is None:
                parts.append(_NULL)
            else:
                encoded = item.encode()
                parts += (_LENGTH(len(encoded)), encoded)
        return _array(25, len(obj), parts)


class _BlobsDumper(_ArrayDumper):
    oid, element = 1001, 17

    def dump(self, obj: Blobs) -> Buffer | None:
        parts: list[bytes] = []
        for item in obj:
            parts += (_NULL,) if item is None else (_LENGTH(len(item)), item)
        return _array(17, len(obj), parts)


class _IntsDumper(_ArrayDumper):
    oid, element = 1007, 23

    def dump(self, obj: Ints) -> Buffer | None:
        return _array(23, len(obj), (_NULL if item is None else _INT4(4, item) for item in obj))


class _LongsDumper(_ArrayDumper):
    oid, element = 1016, 20

    def dump(self, obj: Longs) -> Buffer | None:
        return _array(20, len(obj), (_NULL if item is None else _INT8(8, item) for item in obj))


class _FlagsDumper(_ArrayDumper):
    oid, element = 1000, 16

    def dump(self, obj: Flags) -> Buffer | None:
        return _array(16, len(obj), (_TRUE if item else _FALSE for item in obj))


class _TimesDumper(_ArrayDumper):
    oid, element = 1185, 1184

    def dump(self, obj: Times) -> Buffer | None:
        return _array(1184, len(obj), (_NULL if item is None else _INT8(8, item - _2000) for item in obj))


class _MicrosLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True) + _2000


def adapt(connection: BaseConnection[Any]) -> None:
    """Teach `connection` the array types, and to read timestamptz (binary results) as microseconds since 1970."""
    adapters = connection.adapters
    adapters.register_dumper(Texts, _TextsDumper)
    adapters.register_dumper(Blobs, _BlobsDumper)
    adapters.register_dumper(Ints, _IntsDumper)
    adapters.register_dumper(Longs, _LongsDumper)
    adapters.register_dumper(Flags, _FlagsDumper)
    adapters.register_dumper(Times, _TimesDumper)
    adapters.register_loader("timestamptz", _MicrosLoader)
