"""Prints, as the last line of a check, which brokers, Postgres versions and Pythons its tests really used.

The fixtures write one JSON line {"kind": ..., "name": ...} to `.cache/ran.jsonl` whenever they start something.
"""

import json
import os
import sys
from pathlib import Path

RAN = Path(__file__).parent.parent / ".cache" / "ran.jsonl"
KINDS = {"broker": "brokers", "postgres": "Postgres", "python": "Pythons"}


def main() -> int:
    """Print the line; fail when everything is required and one of the kinds did not run at all."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    lines = RAN.read_text().splitlines() if RAN.exists() else []
    for line in lines:
        entry = json.loads(line)
        found.setdefault(entry["kind"], set()).add(str(entry["name"]))
    parts = [
        f"{KINDS.get(kind, kind)}: {', '.join(sorted(names)) or 'none'}" for kind, names in found.items()
    ]
    print("ran with " + "; ".join(parts))
    missing = [kind for kind in KINDS if not found[kind]]
    if missing and os.environ.get("REFOLD_REQUIRE_ALL"):
        print(f"REFOLD_REQUIRE_ALL is set, but nothing ran for: {', '.join(missing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
