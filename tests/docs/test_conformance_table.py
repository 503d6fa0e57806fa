"""The table of clauses and connectors is what the tests play."""

from fixtures.conformance_table import PAGE, page


def test_the_table_is_what_the_tests_play() -> None:
    assert PAGE.read_text() == page(), "run: make docs"
