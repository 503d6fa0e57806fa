"""`refold worker`: runs until it is told to stop, and stops cleanly."""

import signal

from fixtures.terminal import Terminal


def test_a_worker_runs_what_is_started_elsewhere_and_ends_on_sigterm(shop: Terminal) -> None:
    worker = shop.start("worker", "shop.py")
    worker.wait_for(["worker of shop: approval, broken, checkout. Ctrl-C stops it."])
    said = shop.type("start", "shop.py", "checkout", '{"id": "o-1", "amount": 5}', "--wait", "20", "--json")
    assert said.json["result"] == "receipt-o-1"
    assert worker.interrupt(signal.SIGTERM) < 5


def test_two_workers_of_one_command_line_just_work(shop: Terminal) -> None:
    first, second = shop.start("worker", "shop.py"), shop.start("worker", "shop.py")
    for worker in (first, second):
        worker.wait_for(["worker of shop: approval, broken, checkout. Ctrl-C stops it."])
    for number in range(5):
        order = f'{{"id": "o-{number}", "amount": 5}}'
        said = shop.type("start", "shop.py", "checkout", order, "--wait", "20", "--json")
        assert said.json["result"] == f"receipt-o-{number}"
    first.interrupt()
    said = shop.type("start", "shop.py", "checkout", '{"id": "last", "amount": 5}', "--wait", "20", "--json")
    assert said.json["result"] == "receipt-last"
