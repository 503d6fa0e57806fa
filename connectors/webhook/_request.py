"""One request, as it came: raw bytes, nothing decoded."""

from refold.connectors.webhook._headers import SECRET, Headers, latin


class Request:
    """What verifiers, identities and deliveries are made from. `path` is without the mount's prefix."""

    __slots__ = ("body", "content_type", "headers", "path", "query")

    def __init__(self, path: str, query: bytes, headers: Headers, body: bytes) -> None:
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.content_type = latin(headers.one(b"content-type") or b"")

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; empty when there is none."""
        return self.content_type.partition(";")[0].strip().lower()

    def kept_headers(self, secret: frozenset[bytes]) -> tuple[tuple[str, str], ...]:
        """Return the headers that a history may keep: all but `secret` ones and those that always are."""
        return tuple(
            [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in self.headers.pairs
                if name not in SECRET and name not in secret
            ]
        )
