"""How the commands that need no app reach the log: by URL, or in the Postgres that `.refold/` holds."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from refold.core import App
from refold.core.cli._output import Wrong
from refold.eventlog import embedded_postgres, find_project_dir


def project_folder() -> Path:
    """Return the `.refold/` folder of the project that the current folder lies in, whether it exists or not."""
    return find_project_dir() / ".refold"


@contextmanager
def resolve_database(url: str | None) -> Iterator[str]:
    """Yield the URL of the database to use, keeping an embedded Postgres up as long as the block runs."""
    if url:
        yield url
        return
    folder = project_folder()
    if not folder.exists():
        # Starting an empty server in whatever folder this is would answer "no workflows", and be wrong.
        raise Wrong(
            f"no database: REFOLD_DATABASE_URL is not set, and {folder.parent} has no .refold/ folder\n"
            "run this where `refold dev` runs, or give the database:  --database-url postgresql://..."
        )
    with embedded_postgres() as server:
        yield server.url


@contextmanager
def open_log(url: str | None) -> Iterator[App]:
    """Yield an app without workflows, to look at and to change what is in the log."""
    with resolve_database(url) as found:
        app = App("refold", database_url=found)
        try:
            yield app
        finally:
            app.close()


@contextmanager
def opened(app: App) -> Iterator[App]:
    """Yield an app with its database settled (its own, the environment's, else the embedded one); close it after."""
    with ExitStack() as stack:
        if configured_url(app) is None:
            # Opened here, the app would print a line about it, which is no JSON.
            app.database_url = stack.enter_context(embedded_postgres()).url
        stack.callback(app.close)
        yield app


def configured_url(app: App) -> str | None:
    """Return the URL that the app was given or that the environment has; None means the embedded Postgres."""
    return app.database_url or os.environ.get("REFOLD_DATABASE_URL") or None
