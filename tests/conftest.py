"""The fixtures of all tests, by subject; each module is a pytest plugin with hooks of its own."""

from importlib.util import find_spec

_SUBJECTS = (
    "ran",
    "postgres",
    "heads",
    "proxy",
    "pgbouncer",
    "brokers",
    "nats_server",
    "built",
    "terminal",
    "workers",
    "lanes",
    "orders",
    "stage",
    "slack",
    "webhooks",
    "kit",
)

pytest_plugins = [f"fixtures.{name}" for name in _SUBJECTS if find_spec(f"fixtures.{name}")]
