"""What a child process runs first: it ties its life to its parent's before it imports anything large."""

from __future__ import annotations

import sys

from service.system.process import die_with_parent


def main() -> None:
    die_with_parent(int(sys.argv[2]))

    from service.workers.child import main as run

    run()


if __name__ == "__main__":
    main()
