"""A stop is seen whichever thread the kernel gives the signal to. Python's handlers run in the main one only."""

import subprocess

import pytest

from fixtures.terminal import REFOLD, Terminal

# The kernel may choose any thread of the process. Here it is one for certain.
APP = """\
import pathlib
import signal
import threading

import refold

app = refold.App("shop")


@app.workflow
def checkout() -> None: ...


class Stopper:
    name = "stopper"
    kind = "stopper"

    def start(self, app):
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        never = threading.Event()
        while not pathlib.Path("stop").exists():
            never.wait(0.02)
        # The main thread waits by now.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def stop(self):
        print("stopped in order", flush=True)

    def describe(self):
        return ["it runs"]

    def report(self):
        return []

    def try_next(self):
        return []


app.connect(Stopper())
"""


@pytest.mark.parametrize("command", ["worker", "dev"])
def test_a_signal_that_another_thread_gets_stops_it_in_order(shop: Terminal, command: str) -> None:
    shop.write("shop.py", APP)
    running = subprocess.Popen(
        [str(REFOLD), command, "shop.py"],
        cwd=shop.folder,
        env=shop.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if "it runs" in line:
                break
        (shop.folder / "stop").touch()
        out, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    assert "stopped in order" in out
