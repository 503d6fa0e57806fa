"""The headers of a request, as bytes, in the order in which they came."""

from collections.abc import Iterable
from typing import Final

# What a history must not keep: whoever reads it could call as the sender does.
SECRET: Final = frozenset((b"authorization", b"proxy-authorization", b"cookie"))


class Headers:
    """A multimap. Names are lower case, as ASGI gives them."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.pairs = list(pairs)

    def one(self, name: bytes) -> bytes | None:
        """Return the value of the only header `name`; None when there is none, or more than one.

        Two headers of one name may be read one way here and another way by a proxy, so neither counts.
        """
        found = None
        for key, value in self.pairs:
            if key == name:
                if found is not None:
                    return None
                found = value
        return found

    def has(self, name: bytes) -> bool:
        """Say whether there is a header `name`."""
        return any(key == name for key, _ in self.pairs)


def header_name(name: str) -> bytes:
    """Return the name of a header as ASGI has it."""
    return name.lower().encode("latin-1")


def latin(value: bytes) -> str:
    """Return a header's value as text; no bytes are refused."""
    return value.decode("latin-1")
