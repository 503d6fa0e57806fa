"""The breakages: what somebody could do in a few lines without noticing that it breaks a promise.

Each names the few tests that are to catch it, and the words (a regular expression) in which one of them must complain,
so that a red for any other reason does not count. A search that is not found exactly once is an error: then the code
has moved on, and the entry must follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


class DoesNotApply(Exception):
    """The code is not what the mutant was written for."""


@dataclass(frozen=True)
class Change:
    """One search and replace in one file. The text stands in the file exactly once."""

    path: str
    search: str
    replace: str


@dataclass(frozen=True)
class Mutant:
    """One promise broken. `because` is found in what a test says that caught it."""

    name: str
    changes: Sequence[Change]
    tests: Sequence[str]
    because: str

    def apply(self, root: Path) -> None:
        """Break the copy at `root`; raises DoesNotApply."""
        for change in self.changes:
            path = root / change.path
            text = path.read_text()
            if (found := text.count(change.search)) != 1:
                raise DoesNotApply(f"{change.path} has this {found} times, and not once:\n{change.search}")
            path.write_text(text.replace(change.search, change.replace))


_READER: Final = "connectors/kafka/_reader.py"
_EXECUTOR: Final = "core/_executor.py"
_SCHEMA: Final = "eventlog/sql/schema.sql"
_HOOKS: Final = "connectors/webhook/_asgi.py"

MUTANTS: Final[Sequence[Mutant]] = (
    Mutant(
        "Kafka is told before Postgres has the records",
        [
            Change(
                _READER,
                "            batch.done = self._lane.hand_over(moves)\n",
                "            for part, position in batch.after:\n"
                "                self._hint.note(part.key, position.next_offset)\n"
                "            self._hint.tell(at_once=True)\n"
                "            batch.done = self._lane.hand_over(moves)\n",
            )
        ],
        [
            "tests/connectors/test_kafka_traps.py::test_4_kafka_is_not_told_of_records_that_were_only_fetched[tansu]",
        ],
        r"assert 2 == 1",
    ),
    Mutant(
        "the position moves in a transaction of its own",
        [
            Change(
                "core/_source.py",
                "            log_time, existing = await self._lane.transact(rows.appends)\n",
                "            alone = [Append(a.stream, starts=a.starts) for a in rows.appends]\n"
                "            log_time, existing = await self._lane.transact(alone)\n"
                "            moved = [Append(a.stream, events=a.events, position=a.position) for a in rows.appends]\n"
                "            await self._lane.transact(moved)\n",
            )
        ],
        [
            "tests/engine/test_hand_over.py::test_starts_and_position_have_one_transaction",
            "tests/engine/test_hand_over.py::test_a_position_that_another_has_moved_is_refused_with_all_its_starts",
        ],
        r"two transactions|assert \[\('a',\)",
    ),
    Mutant(
        "a source's position is moved wherever it stands",
        [
            Change(
                "core/_source.py",
                "                raise PositionMoved([move.expected.source for move in moves]) from error\n",
                "                stand = await worker.reader.positions([move.expected.source for move in moves])\n"
                "                for move in moves:\n"
                "                    move.expected = stand[move.expected.source]\n"
                "                return await self._hand_over_once(worker, moves)\n",
            )
        ],
        [
            "tests/engine/test_hand_over.py::test_a_position_that_another_has_moved_is_refused_with_all_its_starts",
        ],
        r"DID NOT RAISE",
    ),
    Mutant(
        "the topic's own ID is left out of the workflow's ID",
        [
            Change(
                "connectors/kafka/_identity.py",
                '    which = topic_id if topic_id is not None else f"@{timestamp}"\n',
                '    which = "" if topic_id is not None else f"@{timestamp}"\n',
            )
        ],
        ["tests/connectors/test_kafka_identity.py::test_records_that_differ_in_one_part_only_have_other_ids"],
        r"topic_id is not in the ID",
    ),
    Mutant(
        "a record that cannot be decoded is skipped",
        [
            Change(
                _READER,
                "starts=[one for one in made if isinstance(one, Start)],",
                "starts=[one for one in made if isinstance(one, Start) and one.failure is None],",
            )
        ],
        ["tests/connectors/test_kafka_undecodable.py::test_what_was_read_past_has_been_written_down"],
        r"record 1 was skipped",
    ),
    Mutant(
        "a result is taken from memory, not from the recorded bytes",
        [
            Change(
                "core/_codec.py",
                "        raw = self._encode_only(value)\n",
                "        raw = self._encode_only(value)\n        _KEPT[raw] = value\n",
            ),
            Change(
                "core/_codec.py",
                "        try:\n            return self._decoder(raw)\n        except msgspec.MsgspecError as exc:\n"
                "            raise DecodeFailed(self.where",
                "        try:\n            return _KEPT.get(bytes(raw)) or self._decoder(raw)\n"
                "        except msgspec.MsgspecError as exc:\n"
                "            raise DecodeFailed(self.where",
            ),
            Change(
                "core/_codec.py",
                "_decode_any: Final = msgspec.json.decode\n",
                "_decode_any: Final = msgspec.json.decode\n_KEPT: dict[bytes, Any] = {}\n",
            ),
        ],
        ["tests/engine/test_steps.py::test_a_result_is_what_was_recorded_not_what_was_returned"],
        r"'\(1, 2\)' == '\[1, 2\]'",
    ),
    Mutant(
        "NaN and infinity are taken where there is no type hint",
        [Change("core/_codec.py", "        if math.isfinite(value):\n", "        if True:\n")],
        ["tests/core/test_codec.py"],
        r"DID NOT RAISE",
    ),
    Mutant(
        "a failed attempt is not recorded",
        [
            Change(
                _EXECUTOR,
                "        def failed(no: int) -> StepFailed:\n",
                "        if retry_in is not None:\n"
                "            call.attempt, call.failures = call.attempt + 1, call.failures + 1\n"
                "            self._loop.call_later(retry_in / 1e6, self._outside.run_steps, [call])\n"
                "            return\n\n"
                "        def failed(no: int) -> StepFailed:\n",
            )
        ],
        ["tests/engine/test_steps.py::test_failed_attempts_are_events_that_say_when_the_next_one_is_due"],
        r"assert \[\] == \[1, 2, 3\]",
    ),
    Mutant(
        "each try of a step has an idempotency key of its own",
        [
            Change(
                "core/_definitions.py",
                '        return f"{self.workflow_id}/{self.no}"\n',
                '        return f"{self.workflow_id}/{self.no}/{self.attempt}"\n',
            )
        ],
        ["tests/engine/test_steps.py::test_failed_attempts_are_events_that_say_when_the_next_one_is_due"],
        r"'p/0/1'",
    ),
    Mutant(
        "a result is given before it is durable",
        [
            Change(
                _EXECUTOR,
                "        self._append(resident, event)\n"
                "        part = self._part(resident)\n        part.head = HeadChange(\n",
                "        self._append(resident, event)\n        part = self._part(resident)\n"
                "        self._outside.ended(resident.id, event)\n        part.head = HeadChange(\n",
            )
        ],
        ["tests/engine/test_durable_first.py::test_a_result_is_given_when_it_is_durable_and_not_before"],
        r"given before it was in the log",
    ),
    Mutant(
        "a step begins before the result it follows from is durable",
        [
            Change(
                _EXECUTOR,
                "            if after > resident.durable_seq:\n",
                "            if after > resident.next_seq:\n",
            ),
            Change(
                _EXECUTOR,
                "            resident.allowed_after\n            and resident.part is None\n"
                "            and resident.in_flight is None\n            and resident.held is None\n",
                "            resident.allowed_after\n            and resident.held is None\n",
            ),
        ],
        [
            "tests/engine/test_durable_first.py::test_a_step_begins_when_the_result_before_it_is_durable_and_not_before"
        ],
        r"the second step began before the first was in the log",
    ),
    Mutant(
        "a start is told before it is durable",
        [
            Change(
                _EXECUTOR,
                "        self._starting[start.new.workflow_id] = [start]\n        key =",
                "        self._starting[start.new.workflow_id] = [start]\n"
                "        start.tell(False, None)\n"
                "        key =",
            )
        ],
        ["tests/engine/test_durable_first.py::test_a_start_is_told_when_it_is_durable_and_not_before[start]"],
        r"told before it was in the log",
    ),
    Mutant(
        "a notification is the only thing that wakes",
        [
            Change(
                "core/_worker.py",
                "        if tick.work:\n            self._work.set()\n"
                "        if tick.mail:\n            self._mail.set()\n",
                "",
            )
        ],
        ["tests/engine/test_mail_unheard.py::test_mail_is_found_though_its_notification_was_lost"],
        r"not within 15 s|nothing came within 15 s",
    ),
    Mutant(
        "a message stays in the inbox beside the event that it became",
        [Change(_SCHEMA, "    if d_id is not null then\n", "    if d_id is not null and false then\n")],
        ["tests/engine/test_mail_unheard.py::test_a_message_leaves_the_inbox_with_the_event_that_it_becomes"],
        r"assert 1 == 0",
    ),
    Mutant(
        "a message that comes twice is folded twice",
        [
            Change(
                _EXECUTOR,
                "        if message_id not in resident.folded:\n",
                "        if True:\n",
            )
        ],
        ["tests/engine/test_mail_unheard.py::test_a_message_that_was_folded_before_is_not_folded_again"],
        r"folded again|folded into w|\[1, 1, ",
    ),
    Mutant(
        "sets of tasks are gone through in the order of memory addresses",
        [
            Change(
                "core/_loop.py",
                "        super().__init__(\n            coro, loop=loop",
                "        self._hash = id(self) >> 4\n        super().__init__(\n            coro, loop=loop",
            )
        ],
        [
            "tests/core/test_other_processes.py::test_every_construct_replays_in_a_process_with_another_hash_seed"
        ],
        r"== \[\]",
    ),
    Mutant(
        "as_completed starts its coroutines in asyncio's own order",
        [
            Change(
                "core/_loop.py",
                "        if caller.f_globals is _ASYNCIO_TASKS and (frame :=",
                "        if caller.f_globals is None and (frame :=",
            )
        ],
        [
            "tests/core/test_other_processes.py::test_every_construct_replays_in_a_process_with_another_hash_seed"
        ],
        r"== \[\]",
    ),
    Mutant(
        "gather gives the results in the order in which they came in this run",
        [
            Change(
                "core/_greenlets.py",
                "class Answer:\n",
                "import itertools\n\n_ARRIVALS = itertools.count(1)\n\n\nclass Answer:\n",
            ),
            Change(
                "core/_greenlets.py", "        self._done = True\n", "        self._done = next(_ARRIVALS)\n"
            ),
            Change(
                "core/_greenlets.py",
                "        return tuple(a.error if a.error is not None else a.value for a in answers)\n",
                "        came = sorted(answers, key=lambda a: a._done)\n"
                "        return tuple(a.error if a.error is not None else a.value for a in came)\n",
            ),
        ],
        [
            "tests/core/test_replay.py::"
            "test_fifty_branches_of_three_steps_replay_from_every_cut_in_any_order_of_answers[0-fifty_plain]",
        ],
        r"assert \[",
    ),
    Mutant(
        "replay delivers all that is known before it lets code run",
        [
            Change(
                "core/_driver.py",
                "        if body is not None and body.ready and not self.finished:\n",
                "        waits = self.replaying and self._seq > 0\n"
                "        if body is not None and body.ready and not self.finished and not waits:\n",
            ),
            Change(
                "core/_driver.py",
                "        untaken = self._untaken\n",
                "        body = self._body\n"
                "        if body is not None and body.ready and not self.finished:\n"
                "            body.drain()\n"
                "        untaken = self._untaken\n",
            ),
        ],
        ["tests/core/test_replay.py::test_replaying_any_prefix_of_a_history_asks_for_what_came_next"],
        r"HistoryMismatch",
    ),
    Mutant(
        "the arguments of a step are not compared with the recorded ones",
        [
            Change(
                "core/_driver.py",
                '        if command.args != bytes(event.args) and step.options.compare == "args":\n',
                '        if command.args != bytes(event.args) and step.options.compare == "all":\n',
            )
        ],
        ["tests/core/test_error_texts.py::test_a_mismatch_shows_history_and_code_and_what_differs"],
        r"DID NOT RAISE|text_of|AssertionError",
    ),
    Mutant(
        "arguments are compared as bytes, so that a new optional field is a difference",
        [
            Change(
                "core/_driver.py",
                "                if canonical(live) == canonical(recorded):\n",
                "                if live == bytes(recorded):\n",
            )
        ],
        ["tests/core/test_replay.py::test_an_added_optional_field_is_no_difference"],
        r"HistoryMismatch",
    ),
    Mutant(
        "eviction runs the user's finally blocks for real",
        [
            Change(
                "core/_home.py",
                "    if mark.dead:\n        raise Evicted\n",
                "    if mark.dead or mark.instance is None:\n        return None\n",
            )
        ],
        ["tests/core/test_eviction.py::test_an_evicted_workflow_s_finally_has_no_real_effect"],
        r"assert .*== \{'finally ran'\}",
    ),
    Mutant(
        "a transactional step takes its seq before its SQL runs",
        [
            Change(
                "core/_transactional.py",
                "                with running_step(info_of(call)):\n"
                "                    args, kwargs = step.decode_args(call.command.args)\n"
                "                    encoded = step.encode_result(step.fn(connection, *args, **kwargs))\n"
                "                given = self._reserve(call, encoded).result()\n"
                "                if given is None:\n"
                "                    return None\n",
                "                given = self._reserve(call, b'null').result()\n"
                "                if given is None:\n"
                "                    return None\n"
                "                with running_step(info_of(call)):\n"
                "                    args, kwargs = step.decode_args(call.command.args)\n"
                "                    encoded = step.encode_result(step.fn(connection, *args, **kwargs))\n"
                "                given = _with_result(given, encoded)\n",
            ),
            Change(
                "core/_transactional.py",
                "def _pause(attempt: int) -> float:\n",
                "def _with_result(given: Reserved, encoded: bytes) -> Reserved:\n"
                "    import msgspec\n"
                "    from refold.eventlog._events import encode_event\n\n"
                "    stream, new, event = given\n"
                "    event = msgspec.structs.replace(event, result=msgspec.Raw(encoded))\n"
                "    return stream, NewEvent(new.seq, new.type, new.at, encode_event(event)), event\n\n\n"
                "def _pause(attempt: int) -> float:\n",
            ),
        ],
        [
            "tests/engine/test_transactional_seq.py::"
            "test_what_ends_while_a_transaction_is_open_is_recorded_meanwhile[def]"
        ],
        r"the charge was not recorded while the booking's transaction was open",
    ),
    Mutant(
        "an append goes where the stream happens to end, whatever seq it expected",
        [
            Change(
                _SCHEMA,
                "        select * from unnest(e_id, e_seq, e_type, e_at, e_body);\n",
                "        select e.id, row_number() over (partition by e.id order by e.seq) - 1\n"
                "                     + (select count(*) from refold.events x where x.workflow_id = e.id),\n"
                "               e.type, e.at, e.body\n"
                "          from unnest(e_id, e_seq, e_type, e_at, e_body) as e(id, seq, type, at, body);\n",
            )
        ],
        [
            "tests/eventlog/test_append.py::test_one_stale_append_does_no_harm_to_the_99_good_ones_in_its_flush",
            "tests/eventlog/test_append.py::test_a_history_is_never_mixed_of_two_writers",
        ],
        r"AssertionError|assert",
    ),
    Mutant(
        "an append that clashes is left out row by row: on conflict do nothing",
        [
            Change(
                _SCHEMA,
                "        select * from unnest(e_id, e_seq, e_type, e_at, e_body);\n",
                "        select * from unnest(e_id, e_seq, e_type, e_at, e_body) on conflict do nothing;\n",
            )
        ],
        [
            "tests/eventlog/test_append.py::test_one_stale_append_does_no_harm_to_the_99_good_ones_in_its_flush"
        ],
        r"AssertionError|assert",
    ),
    Mutant(
        "one stale append takes its whole flush with it",
        [
            Change(
                "eventlog/_log.py",
                "                rest = [append for append in rest if append.stream not in stale]\n",
                "                why = next(iter(stale.values()))\n"
                "                return Flushed(0, {append.stream: why for append in rest}, set())\n",
            )
        ],
        [
            "tests/eventlog/test_append.py::test_one_stale_append_does_no_harm_to_the_99_good_ones_in_its_flush"
        ],
        r"AssertionError|assert",
    ),
    Mutant(
        "an event can be updated",
        [
            Change(
                _SCHEMA,
                "create or replace trigger events_are_never_updated before update on refold.events\n"
                "    for each statement execute function refold.refuse_update();\n",
                "",
            )
        ],
        ["tests/eventlog/test_append.py::test_no_event_is_ever_updated"],
        r"DID NOT RAISE",
    ),
    Mutant(
        "a flush does not pass the fence",
        [
            Change(
                _SCHEMA,
                "    if f_worker is not null then\n"
                "        perform refold.fence(f_worker, f_lane, f_epoch, f_flush_no);\n",
                "    if f_worker is not null then\n        perform refold.be_durable();\n",
            )
        ],
        ["tests/eventlog/test_fence.py::test_a_dead_worker_is_refused_as_a_whole"],
        r"DID NOT RAISE",
    ),
    Mutant(
        "a transactional step does not pass the fence",
        [
            Change(
                _SCHEMA,
                "    perform refold.fence(f_worker, f_lane, f_epoch, f_flush_no);\n    insert into refold.events",
                "    insert into refold.events",
            )
        ],
        [
            "tests/eventlog/test_fence.py::"
            "test_a_dead_worker_s_transactional_step_is_rolled_back_with_the_user_s_sql"
        ],
        r"DID NOT RAISE",
    ),
    Mutant(
        "after a broken line the flush is sent again as a new one",
        [
            Change(
                "eventlog/_log.py",
                "            if sent and (done := await self._outcome(connection)):\n                return done\n"
                "            sent = True\n            try:\n"
                "                return await _send(connection, fence, appends)\n",
                "            if sent:\n                self._flush_no += 1\n            sent = True\n            try:\n"
                "                fence = (self.worker, self.name, self._epoch, self._flush_no)\n"
                "                return await _send(connection, fence, appends)\n",
            )
        ],
        [
            "tests/eventlog/test_broken_line.py::test_a_commit_that_takes_place_after_the_client_gave_up_is_waited_for"
        ],
        r"AssertionError|assert",
    ),
    Mutant(
        "a dead worker is never declared so",
        [
            Change(
                "eventlog/_workers.py",
                "                dead.append((worker, beat))\n",
                "                log.debug('%s seems dead', worker)\n",
            )
        ],
        [
            "tests/eventlog/test_liveness.py::"
            "test_a_worker_is_dead_exactly_if_it_stood_still_long_enough_or_its_lock_was_free_twice",
        ],
        r"assert False is",
    ),
    Mutant(
        "a worker is dead after two reads, however long they are apart",
        [
            Change(
                "eventlog/_workers.py",
                "(seen.reads >= 3 and now - seen.since >= self._dead_after)",
                "(now - seen.since >= self._dead_after)",
            )
        ],
        ["tests/eventlog/test_liveness.py::test_a_watcher_that_was_frozen_itself_kills_nobody_at_once"],
        r"\[False, True\]",
    ),
    Mutant(
        "a worker is dead when its lock was free once",
        [Change("eventlog/_workers.py", "if seen.gone >= 2 or", "if seen.gone >= 1 or")],
        ["tests/eventlog/test_liveness.py::test_a_lock_that_was_free_once_is_no_death"],
        r"\[False, True, False\]",
    ),
    Mutant(
        "a death counts against workflows that made progress",
        [
            Change(
                _SCHEMA,
                "suspicion = case when p.progress then 0 else w.suspicion + 1 end",
                "suspicion = w.suspicion + 1",
            )
        ],
        ["tests/eventlog/test_claim.py::test_a_death_counts_only_against_workflows_that_made_no_progress"],
        r"\('moved', 1, 0\)",
    ),
    Mutant(
        "what is stuck is given to the code that it stuck on",
        [
            Change(
                _SCHEMA,
                "                  and (w.status <> 'stuck' or w.fingerprint is distinct from c.fingerprint)\n",
                "",
            )
        ],
        ["tests/eventlog/test_claim.py::test_what_is_stuck_is_given_only_to_other_code"],
        r"assert \['o-1'\] == \[\]",
    ),
    Mutant(
        "a rebuild forgets the positions of sources",
        [
            Change(
                "eventlog/_rebuild.py",
                "                        positions[source] = (generation, row)\n",
                "                        del row\n",
            )
        ],
        ["tests/engine/test_hand_over.py::test_starts_and_position_have_one_transaction"],
        r"position s has a row, but no events",
    ),
    Mutant(
        "who ends the first of a key forgets the next",
        [
            Change(
                _SCHEMA,
                "            existing := existing || refold.move_up(ended, names, f_worker);\n",
                "            null;\n",
            )
        ],
        ["tests/eventlog/test_order.py::test_of_one_key_one_is_due_at_a_time_and_in_order"],
        r"assert \[\] == \['b'\]",
    ),
    Mutant(
        "a start does not hold the one that it gets behind",
        [
            Change(_SCHEMA, "      order by w.workflow_id for share;\n", "      order by w.workflow_id;\n"),
            Change(_SCHEMA, "               for share skip locked) f;\n", "             ) f;\n"),
        ],
        ["tests/eventlog/test_order.py::test_an_end_that_meets_a_start_waits_and_then_makes_that_one_due"],
        r"it did not wait",
    ),
    Mutant(
        "mail brings one forward that is behind a parked one",
        [
            Change(
                _SCHEMA,
                "                where w.workflow_id = i.workflow_id and w.owner is null and not w.behind\n",
                "                where w.workflow_id = i.workflow_id and w.owner is null\n",
            )
        ],
        ["tests/eventlog/test_order.py::test_mail_does_not_bring_one_forward"],
        r"\(\['b'\], False\) == \(\[\], False\)",
    ),
    Mutant(
        "a rebuild takes a retried one for one that has begun",
        [
            Change(
                "eventlog/_rebuild.py",
                "                                 and e.type not in ('Parked', 'Retried')) desc,\n",
                "                         ) desc,\n",
            )
        ],
        ["tests/eventlog/test_order.py::test_a_rebuild_makes_the_same_order_again"],
        r"\('c-0', 'waiting', True",
    ),
    Mutant(
        "what is given up before it has left goes out all the same",
        [
            Change(
                "core/_accept.py", "        self._waiting.pop(ticket, None)\n        ticket.give_up()\n", ""
            )
        ],
        [
            "tests/engine/test_accept.py::test_a_postgres_that_stands_still_is_answered_for_in_time_and_what_waited_is_taken_back"
        ],
        r"assert not \[\('waited',\)\]",
    ),
    Mutant(
        "a worker does not hear that something is due earlier than it knew",
        [
            Change(
                "core/_worker.py",
                "            self.wake_at(int(payload))  # something comes due then",
                "            pass  # something comes due then",
            )
        ],
        [
            "tests/engine/test_hand_over_more.py::test_a_worker_that_sleeps_until_something_is_due_is_woken_by_what_is_due_earlier"
        ],
        r"nothing came within 30 s",
    ),
    Mutant(
        "a fixed time of a schedule runs in the repeated hour as well",
        [Change("connectors/cron/_timing.py", "since if fields.wildcard else span.reached", "since")],
        ["tests/connectors/cron/test_ticks.py::test_a_changed_clock_does_what_vixie_cron_does"],
        r"T\d\d:\d\d[-+]\d\d:\d\d' != '",
    ),
    Mutant(
        "a schedule's jitter moves the identity of the tick",
        [
            Change(
                "connectors/cron/_decide.py",
                "workflow_id(name, state.number, tick, manual=manual)",
                "workflow_id(name, state.number, tick + (spec.jitter and jitter_of(name, tick, spec.jitter)), "
                "manual=manual)",
            )
        ],
        ["tests/connectors/cron/test_decide.py::test_jitter_moves_the_start_and_never_the_identity"],
        r"cron:nightly:1:2026-11-22T12:01:00Z",
    ),
    Mutant(
        "a decision about ticks does not move the schedule on",
        [Change("connectors/cron/_decide.py", "last=newest[0], fired=fired", "fired=fired")],
        [
            "tests/connectors/cron/test_decide.py::test_a_tick_that_is_due_begins_its_workflow_by_its_own_instant"
        ],
        r"1795348800000000 != 1795348860000000",
    ),
    Mutant(
        "a resumed schedule catches up what lay in its pause",
        [
            Change(
                "connectors/cron/_settle.py",
                "paused=False, last=max(now, state.last))",
                "paused=False)",
            )
        ],
        ["tests/connectors/cron/test_decide.py::test_pause_and_resume_leave_out_the_ticks_between"],
        r"31 \* 60000000",
    ),
    Mutant(
        "a day of the month that begins with a star is one of two, and not a condition",
        [
            Change(
                "connectors/cron/_fields.py",
                'both=day[0] in "*?" or weekday[0] in "*?",',
                "both=False,",
            )
        ],
        ["tests/connectors/cron/test_ticks.py::test_calendars"],
        r"2026-02-02T00:00:00",
    ),
    Mutant(
        "Slack hears its 200 before the event is in the log",
        [
            Change(
                "connectors/slack/_intake.py",
                '        await self._start(delivery, handler, workflow_id("event", delivery.body))\n',
                '        started = self._start(delivery, handler, workflow_id("event", delivery.body))\n'
                "        self._soon = asyncio.create_task(started)\n",
            )
        ],
        ["tests/connectors/slack/test_slack_traps.py::test_nothing_is_acknowledged_that_is_not_in_the_log"],
        r"assert 'ok' == 'http_error'",
    ),
    Mutant(
        "bolt's apology to the person passes for a listener that has run",
        [
            Change(
                "connectors/slack/_listeners.py",
                "        if not noted.authorized:\n",
                "        if False:\n",
            )
        ],
        [
            "tests/connectors/slack/test_slack_traps.py::"
            "test_an_event_is_handled_when_bolt_is_authorized_again[500-internal_error]"
        ],
        r"assert \[\] == \['hi'\]",
    ),
    Mutant(
        "bolt answers before its listeners have run",
        [
            Change(
                "connectors/slack/_listeners.py",
                "    runner.process_before_response = True\n",
                "",
            )
        ],
        [
            "tests/connectors/slack/test_slack_traps.py::"
            "test_a_listener_that_raises_is_a_failed_workflow_with_its_error"
        ],
        r"DID NOT RAISE",
    ),
    Mutant(
        "an impatient person answers twice",
        [
            Change(
                "connectors/slack/_identity.py",
                '        text_of(action, "action_id"),\n    )\n',
                '        text_of(body, "trigger_id"),\n    )\n',
            )
        ],
        [
            "tests/connectors/slack/test_slack_interactions.py::"
            "test_the_same_click_of_one_person_is_delivered_once"
        ],
        r"\['U1', 'U1'\] == \['U1', 'U2'\]",
    ),
    Mutant(
        "a request that somebody has recorded is good for ever",
        [
            Change(
                "connectors/slack/_signature.py",
                "if abs(int(stamp) - now) > TOLERANCE:",
                "if int(stamp) - now > TOLERANCE:",
            )
        ],
        [
            "tests/connectors/slack/test_slack_pure.py::test_an_old_request_and_one_from_the_future_are_refused"
        ],
        r"assert not True",
    ),
    Mutant(
        "a gather that is cancelled does not wait for what its branches undo",
        [
            Change(
                "core/_greenlets.py",
                "        if ending:\n            tally = _Tally(getcurrent(), len(ending),",
                "        if not ending:\n            tally = _Tally(getcurrent(), len(ending),",
            )
        ],
        ["tests/core/test_cancel.py::test_a_gather_waits_until_all_that_it_cancelled_has_been_undone"],
        r"went on before its branches had ended",
    ),
    Mutant(
        "the child that is waited for is not asked to cancel",
        [
            Change(
                _EXECUTOR,
                "        self._part(resident).messages.append(\n"
                '            Message(command.child_id, message_id, "CancelRequested", encode_event(asked))\n'
                "        )\n",
                "        assert asked\n",
            )
        ],
        ["tests/engine/test_cancel.py::test_the_child_that_it_waits_for_is_cancelled_first"],
        r"nothing came within 20 s",
    ),
    Mutant(
        "a retry tells the code of the failures again",
        [
            Change(
                "core/_operator.py",
                "Retried(undelivered=sorted(undelivered))",
                "Retried(undelivered=[])",
            )
        ],
        [
            "tests/engine/test_parked.py::test_an_error_out_of_an_ordered_workflow_parks_it_and_a_retry_goes_on_from_there"
        ],
        r"nothing came within 20 s",
    ),
    Mutant(
        "a retry has no retries of its own",
        [Change(_EXECUTOR, "                failures - forgiven,\n", "                failures,\n")],
        [
            "tests/engine/test_parked.py::test_each_retry_has_all_the_retries_of_the_step_and_counts_its_attempts_on"
        ],
        r"assert \[1, 2, 3, 4, 5\] ==",
    ),
    Mutant(
        "a failure that was answered by something recorded is left out of the retry",
        [
            Change(
                "core/_driver.py",
                "            self._failed = [failed for failed in self._failed if no < failed[1]]\n",
                "            pass\n",
            )
        ],
        ["tests/core/test_retry.py::test_retried_as_often_as_it_fails_it_completes_and_replays_exactly"],
        r"HistoryMismatch|history says",
    ),
    Mutant(
        "a workflow that was parked and is retried at once is lost by its own worker",
        [
            Change(
                _EXECUTOR,
                "here.claimed_again = here.evicting or here.parked",
                "here.claimed_again = here.evicting",
            )
        ],
        [
            "tests/engine/test_rare_moments.py::test_a_parked_workflow_that_is_retried_before_its_workers_answer_has_come_goes_on"
        ],
        r"nothing came within 20 s",
    ),
    Mutant(
        "a cancel that meets the parking of its workflow is never read",
        [
            Change(
                _SCHEMA,
                "                  and (w.status = 'waiting' or i.cancels and w.status in ('parked', 'stuck'))\n",
                "                  and w.status = 'waiting'\n",
            )
        ],
        ["tests/engine/test_parked.py::test_a_cancel_that_meets_the_parking_of_its_workflow_ends_it"],
        r"w is cancelled",
    ),
    Mutant(
        "a workflow that never ran is run, to be cancelled",
        [
            Change(
                "core/_operator.py",
                'held.status in ("parked", "stuck") or not held.ran',
                'held.status in ("parked", "stuck")',
            )
        ],
        ["tests/engine/test_cancel.py::test_one_that_never_ran_ends_without_its_code_and_without_a_worker"],
        r"'pending' == 'cancelled'",
    ),
    Mutant(
        "the records of a key are in order without regard to their offsets",
        [Change("connectors/kafka/_starts.py", "return Order(key, record.offset)", "return Order(key, 0)")],
        ["tests/connectors/test_kafka_order.py::test_what_waits_behind_a_parked_key_does_not_stop_the_topic"],
        r"At index \d+ diff: 'a",
    ),
    Mutant(
        "an order goes on in the next life of its topic",
        [
            Change(
                "connectors/kafka/_identity.py",
                """    which = f"{topic_id or ''}~{era}" if era else topic_id or ""\n    base""",
                """    which = ""\n    base""",
            )
        ],
        [
            "tests/connectors/test_kafka_pure.py::test_two_orders_have_one_key_only_when_all_that_counts_is_the_same"
        ],
        r"== False|== \(|changed=",
    ),
    Mutant(
        "a published record has another ID at each try",
        [
            Change(
                "connectors/kafka/_publish.py",
                "outgoing.id or step_info().idempotency_key",
                "outgoing.id or uuid.uuid4().hex",
            )
        ],
        ["tests/connectors/test_kafka_publish.py::test_a_repeat_after_a_crash_has_the_same_id"],
        r"ship-1/0",
    ),
    Mutant(
        "a record that is delivered again is another message to its workflow",
        [
            Change(
                "connectors/kafka/_starts.py",
                "return Send(to=to, id=id,",
                "return Send(to=to, id=f'{id}/{object()!r}',",
            )
        ],
        ["tests/connectors/test_kafka_signal.py::test_a_record_that_is_delivered_again_is_no_second_message"],
        r"assert 2 == 1",
    ),
    Mutant(
        "dead letters are begun only for what this process has parked itself",
        [
            Change(
                "connectors/kafka/_dead_letters.py",
                "self._over.clear()\n        self._look.set()",
                "self._over.clear()",
            ),
            Change("connectors/kafka/_dead_letters.py", "self._look.wait(_LOOK_EVERY)", "self._look.wait()"),
        ],
        [
            "tests/connectors/test_kafka_dead_letters.py::test_a_letter_is_not_lost_wherever_the_worker_dies"
            "[before the letter is begun]"
        ],
        r"the letter and the next record",
    ),
    Mutant(
        "a hand-over is bounded in records only",
        [
            Change(
                "connectors/kafka/_backlog.py",
                "if taken and size_of(record) > size:",
                "if size < 0 and taken and not record:",
            )
        ],
        ["tests/connectors/test_kafka_pure.py::test_a_hand_over_is_bounded_in_records_and_in_bytes"],
        r"assert \d+ <= \d+",
    ),
    Mutant(
        "the conformance kit does not look whether anything was done twice",
        [
            Change(
                "testing/_stage.py",
                "for key, times in self.done().items() if times > 1}",
                "for key, times in self.done().items() if times > 9}",
            )
        ],
        [
            "tests/testing/test_wrong_connectors.py::"
            "test_a_wrong_connector_is_refused_at_the_clause_that_it_breaks[NewIdPerDelivery]"
        ],
        r"'kept' == 'refused'",
    ),
    Mutant(
        "the conformance kit's crash comes when the connector knows already",
        [
            Change(
                "testing/_probe.py",
                "        self._probe.wait_before()\n"
                "        accepted = super().accept(items, **options)\n"
                '        self._probe.at("after")\n'
                "        return accepted\n",
                "        self._probe.wait_before()\n"
                "        accepted = super().accept(items, **options)\n"
                '        threading.Timer(0.5, self._probe.at, ("after",)).start()\n'
                "        return accepted\n",
            )
        ],
        [
            "tests/testing/test_wrong_connectors.py::"
            "test_a_wrong_connector_is_refused_at_the_clause_that_it_breaks[RemembersUnderALock]"
        ],
        r"'kept' == 'refused'",
    ),
    Mutant(
        "a field that the type skips may hold bytes that are no UTF-8",
        [
            Change(
                "core/_envelope.py",
                '        body.decode("utf-8")\n        self._decode(body)\n',
                "        self._decode(body)\n",
            )
        ],
        [
            "tests/core/test_envelope.py::test_a_body_that_does_not_fit_is_recorded_as_failed_with_its_bytes[skipped]"
        ],
        r"assert None is not None",
    ),
    Mutant(
        "a delivery is answered before it is committed",
        [
            Change(
                _HOOKS,
                "        accepted = await self._accept(endpoint, items)\n",
                "        self._soon = asyncio.create_task(self._accept(endpoint, items))\n"
                '        accepted = [Accepted(getattr(item.what, "id", ""), True) for item in items]\n',
            )
        ],
        [
            "tests/connectors/webhook/test_webhook_crash.py::"
            "test_a_delivery_whose_receiver_was_killed_is_one_workflow_after_a_retry[between commit and answer]"
        ],
        r"assert 0 == 1",
    ),
    Mutant(
        "a signature is compared without its last character",
        [
            Change(
                "connectors/webhook/_verify.py",
                "found |= hmac.compare_digest(right, given)",
                "found |= hmac.compare_digest(right[:-1], given[:-1])",
            )
        ],
        [
            "tests/connectors/webhook/test_webhook_verifiers.py::test_headers_with_any_one_bit_changed_are_refused[github]"
        ],
        r"assert None is not None",
    ),
    Mutant(
        "a delivery that was caught may be sent again under another ID, unseen",
        [
            Change(
                "connectors/webhook/_endpoint.py",
                "find_same=self._may_be_replayed(found),",
                "find_same=False,",
            )
        ],
        [
            "tests/connectors/webhook/test_webhook_deliveries.py::"
            "test_the_same_body_under_an_id_that_is_not_signed_is_reported"
        ],
        r"same_body_as",
    ),
    Mutant(
        "a body's size is believed, and not counted",
        [Change(_HOOKS, "if size > most or self._held > self._room:", "if self._held > self._room:")],
        ["tests/connectors/webhook/test_webhook_limits.py::test_a_body_is_counted_as_it_comes"],
        r"where False = _is_problem",
    ),
    Mutant(
        "an Idempotency-Key may be used for another body",
        [Change(_HOOKS, "            if endpoint.settings.identity.replays:\n", "            if False:\n")],
        [
            "tests/connectors/webhook/test_webhook_deliveries.py::"
            "test_a_key_is_the_same_quoted_or_not_and_another_body_is_422[k-1]"
        ],
        r"assert 202 == 422",
    ),
    Mutant(
        "NATS is told before Postgres has the messages",
        [
            Change(
                "connectors/nats/_reader.py",
                "        starts = [binding.start_of(message) for message in messages]\n",
                "        starts = [binding.start_of(message) for message in messages]\n"
                "        for message in messages:\n"
                "            await message.ack()\n"
                "            message._ackd = False\n",
            )
        ],
        ["tests/connectors/nats/test_nats.py::test_nothing_is_acknowledged_that_postgres_does_not_have"],
        r"assert 0 == 1",
    ),
    Mutant(
        "a JetStream stream that counts from 1 again has the IDs that it had before",
        [
            Change(
                "connectors/nats/_message.py",
                'join_id("nats", consumer, stream, str(time_ns), str(sequence))',
                'join_id("nats", consumer, stream, str(sequence))',
            )
        ],
        ["tests/connectors/nats/test_nats.py::test_two_messages_never_get_one_id"],
        r"have one ID",
    ),
    Mutant(
        "a durable consumer that gives messages up is used",
        [Change("connectors/nats/_reader.py", "if config.max_deliver > 0:", "if config.max_deliver > 99:")],
        ["tests/connectors/nats/test_nats.py::test_a_consumer_that_cannot_keep_the_promise_is_refused"],
        r"'gives a message up after 1 deliveries' in 'None'",
    ),
    Mutant(
        "what one round of the engine's loop posts stays in the mailbox",
        [Change("core/_engine.py", "self._sender.call_soon(self._wake_late)", "self._loop.is_closed()")],
        [
            "tests/engine/test_mailbox.py::"
            "test_what_one_round_of_the_senders_loop_posts_wakes_the_other_loop_once"
        ],
        r"assert False",
    ),
    Mutant(
        "Kafka is told of each hand-over, without waiting for its answers",
        [
            Change(
                "connectors/kafka/_lag_hint.py",
                "(not at_once and (self._is_under_way or now < self._next_at))",
                "now < 0",
            )
        ],
        [
            "tests/connectors/test_kafka_hand_over.py::"
            "test_kafka_is_told_of_many_hand_overs_at_once_when_its_answers_are_slow"
        ],
        r"assert \d+ < 50",
    ),
    Mutant(
        "what a killed worker could not tell Kafka is never told",
        [Change(_READER, "                self._hint.note(part.key, part.position.next_offset)\n", "")],
        [
            "tests/connectors/test_kafka_hand_over.py::"
            "test_kafka_is_told_by_the_next_worker_what_a_killed_one_could_not_tell"
        ],
        r"waited in vain for the committed offset",
    ),
    Mutant(
        "an embedded server that is still dying is in the way of the next one",
        [
            Change(
                "eventlog/_embedded.py",
                "            if time.monotonic() > began + _LEFT_OVER_SECONDS:\n                return",
                "            if True:\n                return",
            )
        ],
        ["tests/eventlog/test_embedded.py::test_a_server_that_is_still_dying_is_waited_for"],
        r"Is another postmaster",
    ),
    Mutant(
        "a hand-over of a generation that is over moves the position back",
        [
            Change(
                _SCHEMA,
                "            < (substring(excluded.stream from '[0-9]+$')::bigint, excluded.next_seq);\n",
                "            < (substring(excluded.stream from '[0-9]+$')::bigint, excluded.next_seq) or true;\n",
            )
        ],
        [
            "tests/engine/test_hand_over.py::"
            "test_who_slept_through_a_change_of_generation_moves_no_position_back"
        ],
        r"DID NOT RAISE",
    ),
    Mutant(
        "a worker of the old release that meets an error brings its schedules back",
        [Change("connectors/cron/_runner.py", "        if self.settled.is_set():\n", "        if False:\n")],
        [
            "tests/connectors/cron/test_schedules.py::"
            "test_a_worker_of_the_old_release_that_meets_an_error_brings_back_nothing_old"
        ],
        r"'0 9 \* \* \*' == '0 10 \* \* \*'",
    ),
)
