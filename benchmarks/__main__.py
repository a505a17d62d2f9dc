"""`python -m benchmarks`: install, smoke, run, report."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import contenders, runs, venvs
from benchmarks.photos import ROOT, default_folder, default_graph
from benchmarks.processes import adopt_orphans

_RECORDS = Path(__file__).parent / "records"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", choices=("install", "smoke", "run", "report"))
    parser.add_argument("record", nargs="?", type=Path, help="report: the folder to render anew")
    parser.add_argument("--photos", type=Path, default=default_folder(), help="a folder of JPEGs")
    parser.add_argument(
        "--int8", type=Path, default=default_graph(), help="<name>/<version>/model.onnx"
    )
    parser.add_argument("--fp32", type=Path, help="the same in float; left out if not given")

    names = [contender.name for contender in contenders.CONTENDERS]
    # The baselines need --baseline, so they run only when they are named.
    usual = [name for name in names if not name.startswith(contenders.BASELINE)]
    parser.add_argument("--servers", nargs="+", default=usual, choices=names)
    parser.add_argument("--baseline", type=Path, help="another checkout, to be compared with")
    parser.add_argument("--closed-only", action="store_true", help="no open loops, no broken ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each load; wrk takes whole ones only"
    )
    parser.add_argument("--deadline-ms", type=int, default=500, help="of goodput")
    parser.add_argument("--max-photos", type=int, default=300)
    parser.add_argument("--name", default="servers", help="of the record")
    parser.add_argument("--records", type=Path, default=_RECORDS, help="where records are written")

    return parser


def main() -> int:
    arguments = _parser().parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that servers end
    adopt_orphans()

    if arguments.command == "report":
        runs.render(arguments.record)
        return 0

    # The other servers are installed from their requirements files.
    sources = {"convserve": ROOT, contenders.BASELINE: arguments.baseline}
    for contender in map(contenders.find, arguments.servers):
        name = contender.home or contender.name
        if contender.ours and sources[name] is None:
            raise SystemExit(f"{contender.name}: --baseline is missing")
        print(f"installing {name}", flush=True)
        venvs.install(name, sources.get(name))

    if arguments.command == "install":
        return 0
    options = runs.Options(
        photos=arguments.photos,
        graphs={"int8": arguments.int8.resolve()}
        | ({"fp32": arguments.fp32.resolve()} if arguments.fp32 else {}),
        servers=tuple(arguments.servers),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        deadline_ms=arguments.deadline_ms,
        max_photos=arguments.max_photos,
        closed_only=arguments.closed_only,
    )

    if arguments.command == "smoke":
        return runs.smoke(options)

    now = datetime.now(UTC)
    folder = arguments.records / f"{now:%Y-%m-%d}-{arguments.name}"
    return runs.run(options, folder, started_at=f"{now:%Y-%m-%dT%H:%MZ}")


if __name__ == "__main__":
    sys.exit(main())
