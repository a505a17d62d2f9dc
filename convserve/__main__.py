"""The command `convserve`: installs signal handlers before the slow imports."""

from __future__ import annotations

import signal
import sys

from convserve import neighbours

if complaint := neighbours.complaint("contract", "service"):
    # Before the imports below, which would fail deep inside a foreign package.
    sys.stderr.write(f"convserve: {complaint}\n")
    sys.exit(neighbours.EXIT_FOREIGN_PACKAGE)

from service.system.signals import SignalHandlers


def main() -> None:
    if sys.argv[1:2] != ["serve"]:
        # Ctrl-C ends other commands without a traceback, even while they are still importing.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _run(None)
        return

    signals = SignalHandlers()
    signals.install()

    status = 0
    try:
        _run(signals)
    except SystemExit as end:
        status = int(end.code or 0)
    except Exception:  # noqa: BLE001 - printed as Python would, but the process must end as below
        sys.excepthook(*sys.exc_info())
        status = 1

    # Native threads that still run while the interpreter shuts down would abort the process.
    from service.system.process import exit_now

    exit_now(status)


def _run(signals: SignalHandlers | None) -> None:
    from convserve.commands import convserve

    convserve(obj=signals)


if __name__ == "__main__":
    main()
