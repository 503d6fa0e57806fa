"""The bench: refold and DBOS on one Postgres, in one run, in turns. `python -m bench --help`."""
