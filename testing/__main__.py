"""`python -m refold.testing HARNESS.PY [CLAUSE ...]`: judge a connector, print the report, exit with 1 if refused."""

import argparse
import sys

import psycopg

from refold.core import RefoldError
from refold.testing._clauses import CLAUSES
from refold.testing._kit import Kit
from refold.testing._load import load_harness
from refold.testing._report import as_json, line_of, sum_up


def main() -> int:
    """Judge the connector of one harness."""
    parser = argparse.ArgumentParser(prog="python -m refold.testing", description=__doc__)
    parser.add_argument(
        "harness", nargs="?", help="a Python file with a Harness; FILE:CLASS if it has several"
    )
    parser.add_argument("clauses", nargs="*", metavar="CLAUSE", help="only these; --list shows all")
    parser.add_argument("--list", action="store_true", help="print the clauses, and play none")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="a database of a Postgres in which databases may be made and dropped; default: an embedded one",
    )
    options = parser.parse_args()
    if unknown := [name for name in options.clauses if name not in CLAUSES]:
        parser.error(f"no clause is called {unknown[0]}; there are: {', '.join(CLAUSES)}")
    if options.list:
        for clause in CLAUSES.values():
            print(f"{clause.name:28} {clause.promise}")
        return 0
    if options.harness is None:
        parser.error("expected a Python file with a Harness in it, like:  harness.py")
    try:
        harness = load_harness(options.harness)
        judge = Kit(harness, database_url=options.database_url)
    except ValueError as error:
        parser.error(str(error))
    verdicts = []
    try:
        with judge as kit:
            for verdict in kit.judge_all(options.clauses):
                verdicts.append(verdict)
                if not options.json:
                    print(line_of(verdict), flush=True)
    except (RefoldError, psycopg.OperationalError) as error:
        print(f"refold.testing: {error}", file=sys.stderr)
        return 2
    print(as_json(harness.name, verdicts) if options.json else sum_up(harness.name, verdicts))
    return 1 if any(verdict.result == "refused" for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
