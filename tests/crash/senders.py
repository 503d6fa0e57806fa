"""What sends while workers are killed: Kafka records, signed webhooks, and the clock. Each keeps a manifest."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from confluent_kafka import KafkaError, Message, Producer


class Sender:
    """Threads that send evenly over `seconds`, until all is acknowledged. What goes wrong is raised by `wait`."""

    def __init__(self, name: str, seconds: float, manifest: Path, threads: int = 1) -> None:
        self.manifest = manifest
        self.over = threading.Event()
        self._began, self._seconds = time.monotonic(), seconds
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float) -> None:
        """Return when all is acknowledged."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._errors:
            raise self._errors[0]
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError(f"{self._threads[0].name} is not done")

    def stop(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)

    def is_time_for(self, part: float) -> bool:
        """Wait until `part` of the time is over, from 0 to 1; False when the sender was stopped."""
        # The pace is the test's load, not a wait for something to happen.
        return not self.over.wait(max(0.0, self._began + part * self._seconds - time.monotonic()))

    def send(self, number: int) -> None:
        """Send this thread's part."""
        raise NotImplementedError

    def _run(self, number: int) -> None:
        try:
            self.send(number)
        except BaseException as exc:
            self._errors.append(exc)


class KafkaRecords(Sender):
    """Produces `count` records; the manifest has them as the broker acknowledges them."""

    def __init__(
        self, bootstrap: str, topic: str, count: int, seconds: float, manifest: Path, seed: int
    ) -> None:
        super().__init__("producer", seconds, manifest)
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5}
        )
        self._topic, self._count, self._random = topic, count, random.Random(seed)

    def send(self, number: int) -> None:
        refused: list[KafkaError] = []
        with self.manifest.open("w") as file:

            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    refused.append(error)
                    return
                key = message.key()
                record = {
                    "topic": message.topic(),
                    "partition": message.partition(),
                    "offset": message.offset(),
                    "record": key.decode() if isinstance(key, bytes) else key,
                }
                file.write(json.dumps(record) + "\n")

            for i in range(self._count):
                name = f"record-{i:06}"
                value = json.dumps({"name": name, "work": self._random.randint(0, 100)}).encode()
                self._producer.produce(self._topic, value, key=name, on_delivery=delivered)
                self._producer.poll(0)
                if not self.is_time_for((i + 1) / self._count):
                    return
            if self._producer.flush(60) or refused:
                raise RuntimeError(f"not all records were produced: {refused[:3]}")


class Deliveries(Sender):
    """Posts `count` signed deliveries to random workers, each again and again with the same ID until it gets a 202.

    As real senders do: the ID and the body stay, the time and with it the signature are new at each try. Some hang up
    before they have read the answer, and some send once more what was answered already; both must be told of the same
    workflow as before.
    """

    LANES = 4

    def __init__(
        self,
        ports: Sequence[int],
        path: str,
        secret: str,
        count: int,
        seconds: float,
        manifest: Path,
        seed: int,
    ) -> None:
        super().__init__("deliveries", seconds, manifest, self.LANES)
        self._ports, self._path, self._key = ports, path, base64.b64decode(secret.removeprefix("whsec_"))
        self._count, self._seed = count, seed
        self._connections: dict[tuple[int, int], http.client.HTTPConnection] = {}
        self.tries = 0

    def send(self, number: int) -> None:
        choice = random.Random(self._seed * self.LANES + number)
        with self.manifest.with_suffix(f".{number}.jsonl").open("w") as file:
            for i in range(number, self._count, self.LANES):
                if not self.is_time_for(i / self._count) or not self._deliver(i, number, choice, file):
                    return

    def manifests(self) -> list[Path]:
        return [self.manifest.with_suffix(f".{number}.jsonl") for number in range(self.LANES)]

    def _deliver(self, i: int, lane: int, choice: random.Random, file: TextIO) -> bool:
        """Try until it is taken; False when the sender was stopped before."""
        name = f"delivery-{i:06}"
        body = json.dumps({"name": name, "work": choice.randint(0, 100)}).encode()
        if choice.random() < 0.1:
            self._post(lane, choice, name, body, read=False)
        while (workflow := self._post(lane, choice, name, body)) is None:
            if self.over.wait(choice.uniform(0.05, 0.3)):
                return False
        file.write(json.dumps({"delivery": name, "record": name, "workflow": workflow}) + "\n")
        again = self._post(lane, choice, name, body) if choice.random() < 0.1 else None
        if again not in (None, workflow):
            raise AssertionError(f"{name} was answered with {workflow} and then with {again}")
        return True

    def _post(
        self, lane: int, choice: random.Random, name: str, body: bytes, *, read: bool = True
    ) -> str | None:
        """Post to one of the workers; returns the workflow that a 202 names, None where there was none."""
        self.tries += 1
        port = choice.choice(self._ports)
        connection = self._connections.setdefault(
            (lane, port), http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        )
        sent = str(int(time.time()))
        digest = hmac.digest(self._key, f"{name}.{sent}.".encode() + body, hashlib.sha256)
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": sent,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }
        try:
            connection.request("POST", self._path, body, headers)
            if not read:
                connection.close()
                return None
            response = connection.getresponse()
            answer: Any = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            return None
        if response.status not in (202, 503):
            raise AssertionError(f"{name} was answered with {response.status}: {answer}")
        return str(answer["workflow"]) if response.status == 202 else None


class Ticks:
    """The seconds of a stretch of time at which a schedule has to have ticked: known before the first of them."""

    def __init__(self, from_now: int, seconds: int, manifest: Path) -> None:
        self.first = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=from_now)
        self.last = self.first + timedelta(seconds=seconds)
        self.manifest = manifest
        with manifest.open("w") as file:
            for i in range(self.count):
                shown = (self.first + timedelta(seconds=i)).isoformat().replace("+00:00", "Z")
                file.write(json.dumps({"tick": shown, "record": f"tick-{shown}"}) + "\n")

    @property
    def count(self) -> int:
        return int((self.last - self.first).total_seconds()) + 1

    def left(self) -> float:
        """The seconds until the last of them is over."""
        return (self.last - datetime.now(UTC)).total_seconds()


@contextlib.contextmanager
def sending(*senders: Sender) -> Iterator[None]:
    """Send while the block runs; no thread is left after it."""
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        for sender in senders:
            sender.stop()
