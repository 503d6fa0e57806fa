"""From a decision to the move that hands it over."""

from typing import Any, Final

import msgspec

from refold.connectors.cron._decide import Begin, Decision
from refold.connectors.cron._spec import Spec
from refold.connectors.cron._state import encode_state, order_key
from refold.core import App, Cancel, Move, Note, Order, SourcePosition, Start, Workflow

_encode: Final = msgspec.json.Encoder().encode


def label_of(name: str) -> str:
    """Return what `refold list` shows as the source of the workflows of schedule `name`."""
    return f"schedule:{name}"


def move_of(app: App, name: str, at: SourcePosition, decision: Decision) -> Move:
    """Return the hand-over of `decision`."""
    spec = decision.state.spec
    key = order_key(name, decision.state.number)
    starts = [_start(app, spec, begin, key) for begin in decision.begin]
    cancels = [
        Cancel(to, decision.begin[-1].id, f"schedule {name!r} has come to its next tick")
        for to in decision.cancel
    ]
    return Move(
        at,
        encode_state(decision.state),
        label_of(name),
        starts,
        cancels=cancels,
        notes=[Note(fact.kind, fact.text, _encode(fact.data)) for fact in decision.facts],
    )


def _start(app: App, spec: Spec, begin: Begin, key: str) -> Start:
    return Start(
        app.workflows.get(spec.workflow) or _stand_in(app, spec.workflow),
        begin.id,
        _encode({spec.parameter: begin.tick, **spec.args}),
        order=Order(begin.key or key, begin.no, parks=False) if begin.ordered else None,
        not_before=begin.not_before,
    )


def _stand_in(app: App, name: str) -> Workflow[..., Any]:
    """Declare the workflow `name`, for a program that starts it and does not have its code: the command line."""

    @app.workflow(name=name)
    def runs_elsewhere(tick: Any = None, **args: Any) -> None:
        raise AssertionError(f"workflow {name!r} is run by a worker that has its code")

    return app.workflows[name]
