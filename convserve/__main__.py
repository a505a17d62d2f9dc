"""The command `convserve`: sees to the signals first, and imports afterwards."""

from __future__ import annotations

import signal
import sys

from convserve import neighbours

if complaint := neighbours.complaint("contract", "service"):
    # Here, because the imports below would fail first, deep inside of somebody else's package.
    sys.stderr.write(f"convserve: {complaint}\n")
    sys.exit(neighbours.EXIT_FOREIGN_PACKAGE)

from service.system.signals import SignalHandlers


def main() -> None:
    if sys.argv[1:2] != ["serve"]:
        # Ctrl-C ends other commands as the system does, also while they are still importing.
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
    except Exception:  # noqa: BLE001 - shown as Python would, for the same reason as below
        sys.excepthook(*sys.exc_info())
        status = 1

    # Native threads that still run while the interpreter is finalised would abort the process.
    from service.system.process import exit_now

    exit_now(status)


def _run(signals: SignalHandlers | None) -> None:
    from convserve.commands import convserve

    convserve(obj=signals)


if __name__ == "__main__":
    main()
