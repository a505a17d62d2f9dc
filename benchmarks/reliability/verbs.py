"""Calls the admin port and classifies from many threads at once.

    nice python benchmarks/reliability/verbs.py --threads 64 --calls 200 --workers 0 1

Three versions are promoted, rolled back, loaded and unloaded at random. Exits with 1 if the service ended, a
request failed in a way that it should not, an answer was mixed, or the last state is not what
`repository.toml` says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.photos import ROOT
from benchmarks.processes import ServerTree, free_port
from benchmarks.reliability.adoptions import measure_kinds, settled
from benchmarks.reliability.mixed import wait_until_ready
from benchmarks.reliability.switches import Owner, is_mixed
from contract.repository import changes
from contract.versions import find_versions, read_version

_MB: Final = 1 << 20
_TOKEN: Final = "for-one-run-only-0123456789"  # noqa: S105 - guards nothing
_TIMEOUT_S: Final = 120.0
_N_VERSIONS: Final = 3
_SHARES: Final = {"classify": 50, "promote": 15, "rollback": 10, "load": 12, "unload": 13}
# 409: what answers is not unloaded; 404 and 503 of a classification would be failures.
_EXPECTED: Final = {"classify": {200}, "rollback": {200, 202, 409}}
_EXPECTED_OF_VERBS: Final = {200, 202, 409}
# What a client gets that sends on a connection that was closed meanwhile.
_CLOSED: Final = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)


class Caller:
    """One thread's calls."""

    def __init__(self, ports: tuple[int, int], model: str, seed: int) -> None:
        self.statuses: Counter[tuple[str, int | str]] = Counter()
        self.mixed = 0
        self.repeated = 0  # on a new connection, because the kept one was closed
        self._public, self._admin = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S) for port in ports
        )
        self._model = model
        self._dice = random.Random(seed)  # noqa: S311 - the same calls in each run
        self._picture = (ROOT / "examples" / "cat.jpg").read_bytes()

    def run(self, calls: int) -> None:
        for verb in self._dice.choices(list(_SHARES), list(_SHARES.values()), k=calls):
            self.statuses[verb, self._call(verb)] += 1
        self._public.close()
        self._admin.close()

    def _call(self, verb: str) -> int | str:
        """Returns the status, or the name of what was raised instead."""
        for again in (False, True):
            try:
                return self._classify() if verb == "classify" else self._change(verb)
            except (OSError, http.client.HTTPException) as error:
                self._public.close()
                self._admin.close()
                # The service closes connections that are idle for a minute, as all do that keep them.
                if again or not isinstance(error, _CLOSED):
                    return type(error).__name__
                self.repeated += 1
        raise AssertionError

    def _classify(self) -> int:
        self._public.request("POST", "/v1/classify", self._picture)
        response = self._public.getresponse()
        body = json.loads(response.read())
        if response.status == 200:
            self.mixed += is_mixed(body, self._model)
        return response.status

    def _change(self, verb: str) -> int:
        number = self._dice.randint(1, _N_VERSIONS)
        body = {} if verb == "rollback" else {"version": number}
        path = f"/v1/admin/models/{self._model}/{verb}?wait=false"
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
        self._admin.request("POST", path, json.dumps(body), headers)
        response = self._admin.getresponse()
        response.read()
        return response.status


def measure(asked: argparse.Namespace, workers: int) -> bool:
    """Runs one kind of lane, prints its results and returns whether all aims were met."""
    home = ROOT / "models"
    source = read_version(home, asked.model, max(find_versions(home)[asked.model]))
    with tempfile.TemporaryDirectory() as folder:
        models, log = Path(folder, "models"), Path(folder, "service.log")
        ports = free_port(), free_port()
        owner = Owner(models, ports[0], source)
        for _ in range(_N_VERSIONS):
            owner.publish()
        (models / "repository.toml").write_text(
            f'default = "{asked.model}"\n[models.{asked.model}]\nanswer = 1\n'
        )
        settings: dict[str, Any] = {"models_dir": models, "port": ports[0], "workers": workers}
        settings |= {"admin_port": ports[1], "admin_token": _TOKEN, "max_in_flight": 1000}
        environment = {f"CONVSERVE_{name.upper()}": str(one) for name, one in settings.items()}
        command = [sys.executable, "-m", "convserve", "serve"]
        with ServerTree(command, os.environ | environment, ROOT, log) as tree:
            wait_until_ready(ports[0])
            return _measure(asked, owner, ports, tree)


def _measure(
    asked: argparse.Namespace, owner: Owner, ports: tuple[int, int], tree: ServerTree
) -> bool:
    callers = [Caller(ports, owner.name, seed) for seed in range(asked.threads)]
    threads = [threading.Thread(target=one.run, args=(asked.calls,)) for one in callers]
    before, begun_s = settled(tree, 1), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - begun_s

    state = changes.read_state(owner.models, owner.models / "repository.toml")
    decided = state.decision.models[owner.name]
    said = {"answers": str(decided.answer), "loaded": [str(number) for number in decided.load]}
    owner.wait(lambda status: said == {key: status[key] for key in said})
    after = settled(tree, 3)

    statuses = sum((one.statuses for one in callers), Counter[tuple[str, int | str]]())
    repeated = sum(one.repeated for one in callers)
    mixed = sum(one.mixed for one in callers)
    print("| call | status | n |")
    print("|---|---|---|")
    for (verb, status), n in sorted(statuses.items(), key=str):
        print(f"| {verb} | {status} | {n} |")
    bad = sum(
        n
        for (verb, status), n in statuses.items()
        if status not in _EXPECTED.get(verb, _EXPECTED_OF_VERBS)
    )
    print(
        f"\n{took_s:.0f} s, failed: {bad}, mixed: {mixed}, repeated: {repeated}, "
        f"the service runs: {tree.running}"
    )
    print(f"the file and the service agree: {said}")
    print(
        f"PSS {before.pss_bytes / _MB:.0f} -> {after.pss_bytes / _MB:.0f} MB, threads "
        f"{before.threads} -> {after.threads}, descriptors {before.descriptors} -> "
        f"{after.descriptors}\n",
        flush=True,
    )
    return not bad and not mixed and tree.running


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--calls", type=int, default=200, help="of each thread")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--model", default="efficientnet_lite0")
    asked = parser.parse_args()

    return measure_kinds(measure, asked)


if __name__ == "__main__":
    sys.exit(main())
