"""`python -m mutants [WORD...]`: break the code at each place of the list, or where the name has one of the words."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from mutants._run import CannotJudge, Verdict, Workshop, this_python
from mutants.breakages import MUTANTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose name contains it")
    parser.add_argument(
        "--list", action="store_true", help="print the mutants and the tests that are to catch them"
    )
    parser.add_argument("--why", action="store_true", help="print what the test said, too")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.name for word in options.words)]
    if options.list:
        for mutant in chosen:
            print(mutant.name, *(f"    {test}" for test in mutant.tests), sep="\n")
        return 0
    if not chosen:
        print(f"no mutant's name contains {' or '.join(options.words)}; --list shows all", file=sys.stderr)
        return 2

    began = time.monotonic()
    wide = max(len(mutant.name) for mutant in chosen)
    verdicts: list[Verdict] = []
    unclear = 0
    with tempfile.TemporaryDirectory(prefix="refold-mutants-") as folder:
        workshop = Workshop(Path(folder).resolve())
        print(f"{len(chosen)} mutants, {this_python()}")
        try:
            took = workshop.check_clean(chosen)
        except CannotJudge as exc:
            print(f"CANNOT JUDGE {exc}")
            return 1
        print(f"{'(nothing broken)':{wide}}  {took:6.1f} s  green", flush=True)
        for mutant in chosen:
            try:
                verdict = workshop.judge(mutant)
            except CannotJudge as exc:
                unclear += 1
                print(f"{mutant.name:{wide}}             CANNOT JUDGE {exc}", flush=True)
                continue
            verdicts.append(verdict)
            said = verdict.caught_by or f"SURVIVED: {verdict.seen}"
            print(f"{mutant.name:{wide}}  {verdict.seconds:6.1f} s  {said}", flush=True)
            if options.why and verdict.caught_by:
                print(f"    {verdict.seen}", flush=True)
    caught = sum(verdict.caught_by is not None for verdict in verdicts)
    print(
        f"{caught} of {len(chosen)} caught, {len(verdicts) - caught} survived, {unclear} could not be judged, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
