"""One per cent of the keys is poison: the others run on, and what waited runs in order when it is released."""

import pytest

from fixtures.brokers import ApacheBroker
from fixtures.order_at_scale import run


def test_poison_parks_its_own_keys_and_its_release_replays_in_order(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    figures = run(apache_broker, database_url, keys=400)
    assert (figures.parked, figures.waiting) == (4, 4 * 11)
    assert figures.records == 3 * 400 + 40 + 4 * 11


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_keys_of_which_a_hundred_are_poison(
    apache_broker: ApacheBroker, database_url: str
) -> None:
    figures = run(apache_broker, database_url, keys=10_000, rate=300)
    print(figures)
    assert (figures.parked, figures.waiting) == (100, 100 * 11)
    assert figures.records == 3 * 10_000 + 1_000 + 100 * 11
