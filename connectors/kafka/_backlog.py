"""The records of one partition that were read and are not handed over yet, counted in records and in bytes."""

from collections import deque
from collections.abc import Iterable

from refold.connectors.kafka._message import Record


class Backlog:
    """Records in the order in which they were read."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Record) -> None:
        """Add the record that was read last."""
        self._records.append(record)
        self.size += size_of(record)

    def take(self, count: int, size: int) -> list[Record]:
        """Take out the first records: at most `count`, and no more than `size` bytes unless one alone has more."""
        taken: list[Record] = []
        while self._records and len(taken) < count:
            record = self._records[0]
            if taken and size_of(record) > size:
                break
            size -= size_of(record)
            self.size -= size_of(record)
            taken.append(self._records.popleft())
        return taken

    def put_back(self, records: Iterable[Record]) -> None:
        """Put records that were taken out in front again, in the order in which they came."""
        for record in reversed(list(records)):
            self._records.appendleft(record)
            self.size += size_of(record)

    def clear(self) -> None:
        """Drop all of them."""
        self._records.clear()
        self.size = 0


def size_of(record: Record) -> int:
    """Return about how many bytes a record takes in a hand-over."""
    size = len(record.value or b"") + len(record.key or b"")
    return size + sum(len(name) + len(value or b"") for name, value in record.headers)
