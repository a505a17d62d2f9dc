"""Writes the table of answers, or compares answers with it: python -m tests.corpora [--check]."""

from __future__ import annotations

import argparse
import sys

from tests.corpora.accepted import ACCEPTED
from tests.corpora.answers import TABLE, ask_everything, differences, read_table, write_table


def main() -> int:
    """Returns the exit status: 1 if an answer differs and the difference is not accepted."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpora", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the server")
    options = parser.parse_args()

    answers = ask_everything(f"--workers={options.workers}")
    if not options.check:
        write_table(answers)
        sys.stdout.write(f"{len(answers)} cases in {TABLE}\n")
        return 0

    found = differences(read_table(), answers)
    for name, difference in found.items():
        reason = f" (accepted: {ACCEPTED[name]})" if name in ACCEPTED else ""
        sys.stdout.write(f"{name}: {difference}{reason}\n")
    sys.stdout.write(f"{len(answers)} cases, {len(found)} differences\n")
    return int(not found.keys() <= ACCEPTED.keys())


if __name__ == "__main__":
    sys.exit(main())
