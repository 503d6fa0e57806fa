"""What a connector's workflow gets: a message with its body decoded, and what the system says beside it.

`kafka.Message[Order]` is such an envelope: a generic Struct whose field `value` is the body. The type in the brackets
says how the body is read.
"""

import typing
from collections.abc import Callable
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from refold.core._definitions import Workflow
from refold.core._errors import DecodeFailed, DefinitionRefused
from refold.core._failures import record_error
from refold.core._source import Start

_encode: Final = msgspec.json.Encoder().encode


class Envelope:
    """Turns messages into starts of one workflow, which takes one `kind[T]`, a Struct with a field `value` of type T.

    The body is JSON of type T; with `kind[bytes]` it is taken as it came, with `kind[str]` as UTF-8 text.
    """

    def __init__(self, workflow: Workflow[..., Any], kind: type[msgspec.Struct], *, where: str) -> None:
        """Compile the type. Raises DefinitionRefused, which names `where`, for a workflow that takes something else."""
        self.workflow = workflow
        self.kind = kind
        found = workflow.parameters
        hints = [(name, hint) for name, hint in found.items() if hint is kind or get_origin(hint) is kind]
        if len(found) != 1 or len(hints) != 1:
            takes = ", ".join(f"{name}: {getattr(hint, '__name__', hint)}" for name, hint in found.items())
            raise DefinitionRefused(
                where,
                f"it calls the workflow with one {kind.__name__}, but {workflow.name!r} takes ({takes})",
                f"Write `def {workflow.name}({kind.__name__.lower()}: {kind.__name__}[Order])`, with your own type for "
                "Order.",
            )
        [(self.parameter, hint)] = hints
        self.type: Any = get_args(hint)[0] if get_args(hint) else Any
        """The type of the body."""
        self._form = _form_of(self.type)
        decoder = msgspec.json.Decoder(self.type)
        self._decode: Callable[[bytes], Any] = decoder.decode

    def start(self, id: str, body: bytes, *, what: str, **fields: Any) -> Start:
        """Return the start of a message: `body` becomes its `value`, `fields` are the others.

        Never raises for a body. One that does not fit gives a workflow that is recorded as failed and not run, with
        the bytes kept (base64); `what` names the message there: "file order-1.json".
        """
        try:
            value = self._checked(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            failure = record_error(DecodeFailed(what, _problem(error)))
            return Start(self.workflow, id, self._input(body, fields), failure)
        return Start(self.workflow, id, self._input(value, fields))

    def _checked(self, body: bytes) -> Any:
        """Return what stands for the body in the input, after it has been seen to fit."""
        if self._form == "bytes":
            return body
        if self._form == "text":
            return body.decode("utf-8")
        # By itself: the type may skip what it does not know, and then does not see bytes there that are no UTF-8. They
        # would make the log's JSON unreadable.
        body.decode("utf-8")
        self._decode(body)
        return msgspec.Raw(body)

    def _input(self, value: Any, fields: typing.Mapping[str, Any]) -> bytes:
        return _encode({self.parameter: self.kind(value=value, **fields)})


def _form_of(hint: Any) -> Literal["json", "bytes", "text"]:
    if hint is bytes:
        return "bytes"
    return "text" if hint is str else "json"


def _problem(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 ({error.reason} at byte {error.start})"
    return str(error)


__all__ = ["Envelope"]
