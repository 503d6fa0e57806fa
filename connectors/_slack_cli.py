"""What Slack adds to `refold dev`: an address for the endpoints of an app's Slack mounts.

Loaded by an entry point, so that core needs to know no connector. The Slack package itself is imported inside of
functions only: `refold --help` works without the extra.
"""

import os
from pathlib import Path
from typing import Final

from refold.connectors._http import VARIABLE, listen_nearby, server_of
from refold.core import App, ConnectorPlugin

_FIRST_PORT: Final = 3000  # where bolt's own development server listens
_PORTS: Final = 50


def start_dev_service(app: App, folder: Path) -> None:
    """Have the Slack mounts of `app` served that take requests; one that uses Socket Mode alone needs no server."""
    kinds = {each.kind for each in app.connectors}
    if "slack" not in kinds or "webhook" in kinds:  # where there are webhooks theirs is the address for both
        return
    server = server_of(app)
    if server.sites and not os.environ.get(VARIABLE):
        server.listener = listen_nearby(_FIRST_PORT, _PORTS)


plugin = ConnectorPlugin(dev_service=start_dev_service)

__all__ = ["plugin", "start_dev_service"]
