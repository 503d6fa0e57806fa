"""What goes wrong between refold and Slack, one class for each different reaction."""

from datetime import timedelta

from refold.core import RefoldError


class CallFailed(RefoldError):
    """Slack refused a call, or did not answer. Reaction: look at `error`, Slack's own word for it.

    What can pass ("ratelimited", "internal_error", no connection) has been tried again before; `retry_after` is what
    Slack asked for.
    """

    def __init__(self, method: str, error: str, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(method, error, detail, retry_after_s)
        self.method, self.error, self.detail, self.retry_after_s = method, error, detail, retry_after_s

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait before the next try; the engine waits at least so long."""
        return None if self.retry_after_s is None else timedelta(seconds=self.retry_after_s)

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"Slack's {self.method} failed: {self.error}{detail}. What the word means: docs.slack.dev, {self.method}"


class NotAuthorized(RefoldError):
    """Bolt could not find out whose token to use, so no listener ran. Reaction: none for an outage of Slack; else
    look at the token, or at the installation of this workspace."""

    def __init__(self, workspace: str, detail: str) -> None:
        super().__init__(workspace, detail)
        self.workspace, self.detail = workspace, detail

    def __str__(self) -> str:
        return (
            f"bolt is not authorized for {self.workspace}: {self.detail}. auth.test failed, or the app is not "
            "installed there; the listeners have not run, and are tried again"
        )


class ListenerFailed(RefoldError):
    """Bolt answered with an error that no listener raised: a middleware failed. Reaction: see bolt's own log."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body

    def __str__(self) -> str:
        body = f" ({self.body})" if self.body else ""
        return f"bolt answered {self.status}{body}, and no listener raised an error. Its log says which middleware did"
