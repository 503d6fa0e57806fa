"""A worker process of the kit: the harness's connector in an app, run until SIGTERM.

`python -m refold.testing._child` with its orders in the environment, as JSON. What happens in it goes line by line to
the file descriptor named there.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import msgspec

from refold.testing._load import load_harness
from refold.testing._orders import ORDERS, Orders
from refold.testing._probe import Probe, ProbedApp
from refold.testing._work import _Place


def main() -> None:
    """Run the worker until SIGTERM or SIGINT."""
    orders = msgspec.json.decode(os.environ.pop(ORDERS), type=Orders)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    folder = Path(orders.folder)
    _Place.folder = folder
    turn = threading.Lock()

    def say(what: str) -> None:
        with turn:
            os.write(orders.tell, f"{what}\n".encode())

    harness = load_harness(orders.harness)(folder)
    harness.settings = orders.settings
    harness.worker = orders.worker
    app = ProbedApp("kit", database_url=orders.database_url, probe=Probe(say, folder / "gate", orders.die))
    app.shutdown_grace = timedelta(seconds=harness.grace)
    harness.declare(app)
    faulthandler.register(signal.SIGUSR1)  # the kit asks where a worker stands that does not end
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with app, harness.running(app):
        say("up")
        while not over.wait(0.5):  # a signal that another thread gets does not wake this one
            pass
        say("stopping")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
