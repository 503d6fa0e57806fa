"""Apps in the test's own process."""

from collections.abc import Callable, Iterator

import pytest

from refold import App

MakeApp = Callable[..., App]


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    """An app on the test's database, with no worker yet; `with app:` runs one."""
    made = App("test", database_url=database_url)
    yield made
    made.close()
