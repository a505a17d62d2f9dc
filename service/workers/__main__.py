"""The entry point of a child process."""

from __future__ import annotations

import sys

from service.system.process import die_with_parent


def main() -> None:
    # Before the large imports: the parent may end while they run.
    die_with_parent(int(sys.argv[2]))

    from service.workers.child import main as run

    run()


if __name__ == "__main__":
    main()
