"""What a connector is to the app that runs it, and what it adds to the command line.

How it hands over what it reads is in `_source`; docs/write-a-connector.md tells both from the beginning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    import click

    from refold.core._app import App


class SourceReport(msgspec.Struct, frozen=True):
    """How one source stands: a partition, a stream, a schedule, an endpoint.

    `label` is what `Move.label` says for it, `position` is for people. `lag` counts the messages that the other
    system has and that are not handed over yet, `in_flight` the workflows of `label` that have not ended; None where
    nobody can say. `paused`: it is not read now, because too much is runnable or because a person said so.
    """

    source: str
    label: str
    position: str = ""
    lag: int | None = None
    in_flight: int | None = None
    paused: bool = False


class Connector(Protocol):
    """Something that starts workflows from outside. `app.connect` takes it; the app's worker starts and stops it.

    `name` is its identity: in the IDs of its workflows and in its positions, so it has to stay. `kind` is the word
    before it in the summary of `refold dev` and `refold worker`: "consumer", "schedule", "webhook".
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def start(self, app: "App") -> None:
        """Begin to take messages; called when the worker is up, and again after a `stop`. Threads are its own.

        Returns soon and does not wait for the other system, which may be away. What it raises ends the worker: a
        setting that is missing, not a system that does not answer.
        """
        ...

    def stop(self) -> None:
        """Take no more messages, let the hand-over that is under way end, and return; the worker drains after it."""
        ...

    def describe(self) -> Sequence[str]:
        """Return lines for people: what is taken, from where, how far. Called after `start`."""
        ...

    def report(self) -> Sequence[SourceReport]:
        """Return how each of its sources stands now. May wait for Postgres, never for the other system."""
        ...

    def try_next(self) -> Sequence[str]:
        """Return commands that make it start something, each to be typed as it stands; none when there is none."""
        ...


class DevService(Protocol):
    """What a connector starts for `refold dev`: a broker, a server, on this machine and for this one run."""

    def describe(self) -> Sequence[tuple[str, str]]:
        """Return lines for the summary: a label (`broker`) and what to say about it."""
        ...

    def stop(self) -> None:
        """End the service; called after the worker has stopped."""
        ...


@dataclass(frozen=True)
class ConnectorPlugin:
    """What an entry point of the group `refold.connectors` names: what a connector adds to the `refold` program.

    `commands` become commands of it. `dev_service` is called by `refold dev` with the app and its `.refold/` folder
    before the worker starts, and returns what it started; None when this app has no need of it. The module with the
    plugin is imported whenever the help is shown, so it imports client libraries inside of functions only.
    """

    commands: Sequence["click.Command"] = ()
    dev_service: "Callable[[App, Path], DevService | None] | None" = None


__all__ = ["Connector", "ConnectorPlugin", "DevService", "SourceReport"]
