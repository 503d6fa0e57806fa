"""The check that runs after every test finds what is wrong with a head."""

from typing import Any

import pytest

from fixtures.heads import compare_heads
from fixtures.lanes import FakeWorker, completed, end, position_moved
from fixtures.workers import Log
from refold.eventlog._log import Append, HeadChange


@pytest.fixture
def worker_with_heads(worker: FakeWorker, database_url: str) -> FakeWorker:
    """A worker with a workflow of each kind."""
    worker.start("running", "waiting", "done")
    worker.flush(
        Append("waiting", head=HeadChange("waiting", None)),
        Append("done", events=[completed(1)], head=end(1)),
        position_moved("shop", 0),
    )
    assert compare_heads(database_url) == []
    return worker


@pytest.mark.heads_differ("what the check is for")
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("update refold.workflows set status = 'running' where workflow_id = 'done'", "status is 'running'"),
        ("update refold.workflows set status = 'failed' where workflow_id = 'done'", "status is 'failed'"),
        ("update refold.workflows set status = 'completed' where workflow_id = 'running'", "is 'completed'"),
        ("update refold.workflows set name = 'refund' where workflow_id = 'done'", "name is 'refund'"),
        ("update refold.workflows set digest = '' where workflow_id = 'done'", "digest is ''"),
        ("update refold.workflows set source = 'shop' where workflow_id = 'done'", "source is 'shop'"),
        ("update refold.workflows set parent = 'x' where workflow_id = 'done'", "parent is 'x'"),
        ("update refold.workflows set parent_no = 1 where workflow_id = 'done'", "parent_no is 1"),
        ("update refold.workflows set created_at = now() where workflow_id = 'done'", "created_at is"),
        ("update refold.workflows set finished_at = null where workflow_id = 'done'", "finished_at is None"),
        ("update refold.workflows set owner = null where workflow_id = 'running'", "its owner is None"),
        ("update refold.workflows set owner = 'w1' where workflow_id = 'waiting'", "its owner is w1"),
        (
            "update refold.workflows set status = 'stuck' where workflow_id = 'waiting'",
            "nothing says on which code",
        ),
        ("update refold.workflows set due_at = now() where workflow_id = 'done'", "it is completed and due"),
        ("update refold.workflows set status = 'pending' where workflow_id = 'waiting'", "and never due"),
        ("delete from refold.workflows where workflow_id = 'done'", "workflow done has events, but no row"),
        ("delete from refold.events where workflow_id = 'done'", "workflow done has a row, but no events"),
        ("update refold.positions set position = '2'", "position shop: is"),
        ("update refold.positions set next_seq = 2", "position shop: is"),
        ("delete from refold.positions", "position shop has events, but no row"),
        ("alter table refold.workflows add queue text", "columns ['queue'] are new"),
    ],
)
def test_it_finds(
    worker_with_heads: FakeWorker, log: Log, database_url: str, damage: Any, found: str
) -> None:
    log.rows(damage)
    assert any(found in difference for difference in compare_heads(database_url))


def test_it_changes_nothing(worker_with_heads: FakeWorker, log: Log, database_url: str) -> None:
    before = log.rows("select nspname from pg_namespace order by 1")
    compare_heads(database_url)
    assert log.rows("select nspname from pg_namespace order by 1") == before
