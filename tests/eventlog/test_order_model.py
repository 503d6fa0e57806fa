"""Whatever is started, ended, parked, retried, skipped and rebuilt, in any order: the log agrees with a plain list."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fixtures.heads import compare_heads
from fixtures.lanes import step_done
from fixtures.orders import Shop, ordered
from refold.eventlog._log import Append, NewWorkflow

KEYS = ("a", "b", "c")


@dataclass
class Line:
    """The open workflows of a key, first to last; each is "pending", "running" or "parked"."""

    open: dict[str, str] = field(default_factory=dict)
    started: int = 0
    waited: set[str] = field(default_factory=set)  # parked once, or behind a parked one: till their turn

    def statuses(self) -> dict[str, str]:
        """Return what their heads should say; to be asked after each step."""
        held_up, said = False, {}
        for place, (id, status) in enumerate(self.open.items()):
            held_up = held_up or status == "parked"
            if held_up and place > 0:
                self.waited.add(id)
            said[id] = "waiting" if id in self.waited and status != "parked" and place > 0 else status
        return said


class Orders(RuleBasedStateMachine):
    """Few keys, one worker, and a model of them."""

    orders: Shop  # given by the test

    def __init__(self) -> None:
        super().__init__()
        self.lines = {key: Line() for key in KEYS}
        self.ran: list[str] = []
        self.orders.log.rows("truncate refold.events, refold.inbox, refold.workflows")

    def _all(self, status: str) -> list[tuple[str, str]]:
        return [(key, id) for key in KEYS for id, s in self.lines[key].open.items() if s == status]

    @rule(
        wanted=st.lists(
            st.tuples(
                st.sampled_from(KEYS), st.sampled_from(["plain", "owned", "poison", "failed", "again"])
            ),
            min_size=1,
            max_size=6,
        )
    )
    def start(self, wanted: list[tuple[str, str]]) -> None:
        starts: list[NewWorkflow] = []
        for key, kind in wanted:
            line = self.lines[key]
            if kind == "again":
                no = max(line.started - 1, 0)
                if f"{key}-{no}" in {start.workflow_id for start in starts} or line.started == 0:
                    continue
                starts.append(ordered(f"{key}-{no}", key, no))
                continue
            no, line.started = line.started, line.started + 1
            id = f"{key}-{no}"
            owner = "w1" if kind == "owned" else None
            starts.append(ordered(id, key, no, owner=owner, poison=kind == "poison", failed=kind == "failed"))
            if kind != "failed":
                first = not line.open
                line.open[id] = {"poison": "parked", "owned": "running" if first else "pending"}.get(
                    kind, "pending"
                )
        if starts:
            self.orders.start(*starts)

    @rule()
    def claim(self) -> None:
        due = [next(iter(line.open.items())) for line in self.lines.values() if line.open]
        wanted = sorted(id for id, status in due if status == "pending")
        assert self.orders.claim() == wanted
        for id in wanted:
            self.lines[id[0]].open[id] = "running"

    @precondition(lambda self: self._all("running"))
    @rule(data=st.data())
    def go_on(self, data: Any) -> None:
        _, id = data.draw(st.sampled_from(self._all("running")))
        self.orders.worker.flush(Append(id, events=[step_done(self.orders.seq(id))]))

    @precondition(lambda self: self._all("running"))
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        ended = data.draw(st.lists(st.sampled_from(self._all("running")), min_size=1, unique=True))
        self.orders.end(*(id for _, id in ended))
        for key, id in ended:
            del self.lines[key].open[id]
            self.ran.append(id)

    @precondition(lambda self: self._all("running"))
    @rule(data=st.data())
    def park(self, data: Any) -> None:
        key, id = data.draw(st.sampled_from(self._all("running")))
        self.orders.park(id)
        self.lines[key].open[id] = "parked"

    @precondition(lambda self: self._all("parked"))
    @rule(data=st.data())
    def retry(self, data: Any) -> None:
        key, id = data.draw(st.sampled_from(self._all("parked")))
        assert self.orders.retry(id) is True
        self.lines[key].open[id] = "pending"
        self.lines[key].waited.add(id)

    @precondition(lambda self: self._all("parked"))
    @rule(data=st.data())
    def skip(self, data: Any) -> None:
        key, id = data.draw(st.sampled_from(self._all("parked")))
        assert self.orders.skip(id) is True
        del self.lines[key].open[id]

    @precondition(lambda self: self._never_ran())
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        key, id = data.draw(st.sampled_from(self._never_ran()))
        self.orders.cancel(id)
        del self.lines[key].open[id]

    def _never_ran(self) -> list[tuple[str, str]]:
        return [(key, id) for key, id in self._all("pending") if self.orders.seq(id) == 1]

    @rule()
    def lose_all_and_rebuild(self) -> None:
        self.orders.begin_again()
        for key, id in self._all("running"):
            self.lines[key].open[id] = "pending"
        for line in self.lines.values():
            line.waited.clear()

    @invariant()
    def heads_say_what_the_model_says(self) -> None:
        said = {id: status for line in self.lines.values() for id, status in line.statuses().items()}
        rows = self.orders.log.rows(
            "select workflow_id, status, behind, due_at is not null from refold.workflows where finished_at is null"
        )
        assert {row[0]: row[1] for row in rows} == said
        firsts = {next(iter(line.open)) for line in self.lines.values() if line.open}
        assert {row[0] for row in rows if not row[2]} == firsts
        assert {row[0] for row in rows if row[3]} == {id for id in firsts if said[id] != "parked"}
        assert self.orders.runnable() == sum(status in ("pending", "running") for status in said.values())

    def teardown(self) -> None:
        """Bring all to an end: nobody was forgotten, and each key ran in order."""
        assert compare_heads(self.orders.worker.url) == []
        for _, id in self._all("parked"):
            self.skip_now(id)
        while any(line.open for line in self.lines.values()):
            self.claim()
            running = self._all("running")
            assert running, "somebody was forgotten"
            self.orders.end(*(id for _, id in running))
            for key, id in running:
                del self.lines[key].open[id]
                self.ran.append(id)
        for key in KEYS:
            numbers = [int(id[2:]) for id in self.ran if id[0] == key]
            assert numbers == sorted(numbers)

    def skip_now(self, id: str) -> None:
        assert self.orders.skip(id) is True
        del self.lines[id[0]].open[id]


def test_any_interleaving(orders: Shop) -> None:
    class OnThisDatabase(Orders):
        pass

    OnThisDatabase.orders = orders
    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
