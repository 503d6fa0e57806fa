"""The kit refuses what is wrong, at the clause that it breaks; a kit that only says yes would be worth nothing."""

import pytest

from fixtures.postgres import PostgresServer
from fixtures.wrong_connectors import BECAUSE, HARNESSES, REFUSED_AT, Wrong
from refold.testing import CLAUSES, Kit


@pytest.mark.timeout(300)
@pytest.mark.parametrize("wrong", HARNESSES, ids=lambda wrong: wrong.__name__)
def test_a_wrong_connector_is_refused_at_the_clause_that_it_breaks(
    wrong: type[Wrong], postgres_server: PostgresServer
) -> None:
    clause, *_ = REFUSED_AT[wrong]
    with Kit(HARNESSES[wrong], database_url=postgres_server.url) as kit:
        verdict = kit.judge(clause)
        for _ in range(3):  # two at once, or a crash at one moment: it may keep the clause once by luck
            if verdict.result != "refused":
                verdict = kit.judge(clause)
    assert verdict.result == "refused"
    assert BECAUSE[wrong] in verdict.text


def test_there_is_a_wrong_connector_for_every_clause() -> None:
    assert {clauses[0] for clauses in REFUSED_AT.values()} == set(CLAUSES)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("wrong", HARNESSES, ids=lambda wrong: wrong.__name__)
def test_a_wrong_connector_is_refused_at_no_clause_that_it_keeps(
    wrong: type[Wrong], postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = HARNESSES[wrong]
    refused = {}
    with Kit(harness, database_url=postgres_server.url) as kit:
        for clause in CLAUSES:
            # What is kept may take its time; what is refused is refused by waiting.
            monkeypatch.setattr(harness, "patience", 6.0 if clause in REFUSED_AT[wrong] else 60.0)
            verdict = kit.judge(clause)
            if verdict.result == "refused":
                refused[clause] = verdict.text
    # The others of its list it may keep by luck: they need a crash or a rival at one moment.
    assert REFUSED_AT[wrong][0] in refused
    assert {name: text for name, text in refused.items() if name not in REFUSED_AT[wrong]} == {}
