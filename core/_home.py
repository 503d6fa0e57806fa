"""Where am I? The one context variable that tells workflow code from everything else.

Every workflow instance runs in a context of its own in which `home` holds its `Home`. "Outside" is a positive
state: no home. Inside, `Home.instance` is set only while the driver drives that instance; so a call out of a
workflow's context at any other moment (a `finally` run by the garbage collector, a callback kept by another
thread) is an error and never a real effect. The context holds no reference to the instance itself: a
greenlet's context is invisible to the garbage collector, and would keep it alive for ever.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING

from refold.core._errors import Evicted, WrongCall

if TYPE_CHECKING:
    from refold.core._driver import Instance


class Home:
    """The mark that a context belongs to workflow `workflow_id`."""

    __slots__ = ("dead", "instance", "workflow_id")

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.instance: Instance | None = None
        self.dead = False


home: ContextVar[Home | None] = ContextVar("refold_home", default=None)


def find_instance() -> "Instance | None":
    """Return the workflow instance whose code is calling, or None when the caller is outside of any.

    Raises Evicted in a workflow that is being dropped, and WrongCall in a workflow's context while the driver
    is not driving it.
    """
    mark = home.get()
    if mark is None:
        return None
    if mark.dead:
        raise Evicted
    if mark.instance is None:
        raise WrongCall(
            f"code of workflow {mark.workflow_id!r} made a refold call while the workflow was not being driven",
            "Make refold calls from the workflow's own code, not from threads or callbacks that outlive it.",
        )
    return mark.instance


def get_instance(call: str) -> "Instance":
    """Return the calling workflow's instance; raises WrongCall outside, naming `call`."""
    instance = find_instance()
    if instance is None:
        raise WrongCall(
            f"{call} was called outside of a workflow", "Call it from a function under @app.workflow."
        )
    return instance
