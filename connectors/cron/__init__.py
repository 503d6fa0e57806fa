"""Cron: every tick of a schedule becomes one workflow, whose ID is the tick's own instant."""

try:
    import croniter as _parser  # noqa: F401
except ImportError as exc:
    raise ImportError("refold.connectors.cron needs its parser: pip install 'refold[cron]'") from exc
