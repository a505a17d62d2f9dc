"""The entry point of a child process."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Final

from service.system.process import die_with_parent

IMPORT_WHEN_IDLE: Final = "--import-when-idle"


def main() -> None:
    # Before the large imports: the parent may end while they run.
    die_with_parent(int(sys.argv[2]))

    if IMPORT_WHEN_IDLE in sys.argv[3:]:
        _import_when_idle()
    from service.workers.child import main as run

    run()


def _import_when_idle() -> None:
    """Imports everything on a thread that runs only while the processor is idle.

    On Linux every thread has a policy of its own, so that what follows runs as usual. Threads that begin
    during the import keep this policy: those of numpy's linear algebra, which serving does not use.
    """
    thread = threading.Thread(target=_import_all, name="import")
    thread.start()
    thread.join()


def _import_all() -> None:
    with suppress(AttributeError, OSError):  # not Linux, or a sandbox
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(Exception):  # it is raised again by the next import
        import service.workers.child  # noqa: F401


if __name__ == "__main__":
    main()
