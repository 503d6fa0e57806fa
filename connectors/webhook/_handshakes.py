"""Questions that a sender asks before it sends: is this your endpoint, and do you want this?"""

import hmac
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from refold.connectors.webhook._answers import Answer, json_answer, problem, text_answer
from refold.connectors.webhook._headers import latin
from refold.connectors.webhook._request import Request
from refold.connectors.webhook._schemes import GitHub
from refold.connectors.webhook._secrets import Secret, check_secrets, resolve_secrets
from refold.connectors.webhook._verify import Verifier

# What senders ask to hear again: tokens, no pages.
_ECHO: Final = re.compile(r"[\x20-\x7e]{1,1024}\Z")


class Echo(msgspec.Struct, frozen=True):
    """The value of a query parameter comes back as text, if the token beside it is ours."""

    parameter: str
    token_parameter: str
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<webhook.echo of {self.parameter}>"

    def open(self, where: str) -> "OpenEcho":
        """Resolve the tokens. Raises SecretMissing."""
        return OpenEcho(self, resolve_secrets(where, self.tokens))


class OpenEcho:
    """An echo with its tokens at hand."""

    def __init__(self, declared: Echo, tokens: Sequence[str]) -> None:
        self._declared = declared
        self._tokens = [token.encode() for token in tokens]

    def answer(self, query: bytes) -> Answer | None:
        """Return the echo; None when the parameter is not there, a problem when the token is not ours."""
        try:
            given = dict(parse_qsl(query.decode("latin-1"), max_num_fields=50))
        except ValueError:
            return problem("bad-request", "the query has too many fields")
        said = given.get(self._declared.parameter)
        if said is None:
            return None
        if self._tokens:
            shown = given.get(self._declared.token_parameter, "").encode("utf-8", "replace")
            if not sum(hmac.compare_digest(token, shown) for token in self._tokens):
                return problem("not-verified")
        if _ECHO.match(said) is None:
            return problem("bad-request", f"{self._declared.parameter} is no short text")
        return text_answer(said)


def echo(parameter: str, *, token: Secret | None = None, token_parameter: str = "hub.verify_token") -> Echo:
    """Answer a sender's handshake: `?parameter=text` gets `text` back, by GET, or by POST as Microsoft Graph does.

    `echo("hub.challenge", token="env:VERIFY_TOKEN")` is WebSub's and Meta's, where `token_parameter` must hold one of
    the tokens; `echo("validationToken")` is Microsoft Graph's.
    """
    tokens = () if token is None else check_secrets("webhook.echo", token)
    return Echo(parameter, token_parameter, tokens)


class _Challenge(msgspec.Struct):
    type: str = ""
    challenge: str = ""


_challenge: Final = msgspec.json.Decoder(_Challenge).decode


def answer_verified(verifier: Verifier, request: Request) -> Answer | None:
    """Return the answer to what a verified sender sends only to try us, or that is not wanted; None for the rest."""
    if verifier.kind == "slack" and b"url_verification" in request.body:
        try:
            asked = _challenge(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if asked.type == "url_verification":
            return json_answer(200, {"challenge": asked.challenge})
    if isinstance(verifier, GitHub):
        event = latin(request.headers.one(b"x-github-event") or b"")
        wanted = event != "ping" if verifier.events is None else event in verifier.events
        if event and not wanted:
            return json_answer(200, {"ignored": event[:100]})
    return None
