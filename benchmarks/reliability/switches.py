"""Switches versions under load: publishes, pins and unpins them, with broken ones in between.

    nice python benchmarks/reliability/switches.py --switches 100 --failures 50 --workers 0 1

Versions are copies of a committed one, and each has its number in every label, so an answer that mixes two
versions is noticed. Clients post one photograph without a pause, first for a while without a change,
then during all changes. Exits with 1 if a request failed, an answer was mixed, p99 grew to more than 1.5
times, or the last state is not what `repository.toml` says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.photos import ROOT
from benchmarks.processes import ServerTree, free_port
from benchmarks.reliability.adoptions import measure_kinds, settled
from benchmarks.reliability.mixed import wait_until_ready
from contract.manifest import Manifest, parse_manifest
from contract.repository import changes
from contract.repository.editing import write_change
from contract.repository.publishing import place_version
from contract.versions import Version, find_versions, read_version
from service.models.listing import ListingCache

_MB: Final = 1 << 20
_PATIENCE_S: Final = 120.0
_MAX_P99_GROWTH: Final = 1.5


@dataclass
class Answers:
    """What the clients got in one phase."""

    latencies_s: list[float] = field(default_factory=list)
    failed: Counter[int] = field(default_factory=Counter)
    mixed: int = 0

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) * 1e3


def prefix(number: int) -> str:
    """Returns what begins every label of a version."""
    return f"v{number} "


def is_mixed(body: dict[str, Any], model: str) -> bool:
    """Returns whether an answer has the labels of another version than it says."""
    expected = prefix(int(body["version"]))
    labels = [one["label"] for one in body["predictions"]]
    return body["model"] != model or not all(label.startswith(expected) for label in labels)


class Clients:
    """Threads that post one picture without a pause and check every answer."""

    def __init__(self, port: int, n: int, model: str) -> None:
        self._phase = Answers()
        self._port, self._model = port, model
        self._picture = (ROOT / "examples" / "cat.jpg").read_bytes()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._post) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def next_phase(self) -> Answers:
        with self._lock:
            done, self._phase = self._phase, Answers()
        return done

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _post(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        while not self._over.is_set():
            begun_s = time.monotonic()
            try:
                connection.request("POST", "/v1/classify", self._picture)
                response = connection.getresponse()
                status, body = response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                status, body = 0, {}
            took_s = time.monotonic() - begun_s
            with self._lock:
                if status != 200:
                    self._phase.failed[status] += 1
                    continue
                self._phase.latencies_s.append(took_s)
                self._phase.mixed += is_mixed(body, self._model)
        connection.close()


class Owner:
    """Changes the model repository and waits until the service has done what it should."""

    def __init__(self, models: Path, port: int, source: Version) -> None:
        self.models, self.port, self.source = models, port, source
        self.name = source.manifest.name
        self.newest = 0
        self.good: list[int] = []
        self._listing = ListingCache()

    def publish(self, *, broken: bool = False) -> None:
        self.newest += 1
        manifest = self._manifest(self.newest)
        folder = place_version(self.models, manifest, self.source.contents, lambda _: None)
        if broken:
            os.truncate(folder / manifest.graph.file, 1000)
        else:
            self.good.append(self.newest)

    def _manifest(self, number: int) -> Manifest:
        document = json.loads(self.source.manifest.model_dump_json())
        document["version"] = number
        for label in document["labels"]:
            label["name"] = prefix(number) + label["name"]
        for example in document["golden"]:
            for one in example["top5"]:
                one["label"] = prefix(number) + one["label"]
        return parse_manifest(json.dumps(document))

    def switch(self, number: int) -> None:
        """One of three ways to another version, in turn."""
        if number % 3 == 0:
            self.publish()
            self.wait(lambda status: status["answers"] == str(self.good[-1]))
        elif number % 3 == 1:
            pinned = self.good[-2]
            self.edit(changes.pin, pinned)
            self.wait(lambda status: status["answers"] == str(pinned))
        else:
            self.edit(changes.unpin)
            self.wait(lambda status: status["answers"] == str(self.good[-1]))

    def fail(self) -> None:
        self.publish(broken=True)
        broken = str(self.newest)
        self.wait(lambda status: broken in status["failed"])
        for file in sorted((self.models / self.name / broken).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (self.models / self.name / broken).rmdir()
        self.wait(lambda status: broken not in status["failed"])

    def state(self) -> changes.RepositoryState:
        # The clients are threads of this process: parsing 100 manifests would delay their answers.
        listing = self._listing.list(self.models)
        return changes.read_state(self.models, self.models / "repository.toml", listing=listing)

    def edit(self, verb: Any, *arguments: Any) -> None:
        state = self.state()
        write_change(state.file, verb(state, self.name, *arguments))

    def status(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        connection.request("GET", "/v1/models")
        (status,) = json.loads(connection.getresponse().read())["status"]
        connection.close()
        return dict(status)

    def wait(self, condition: Any) -> None:
        end_s = time.monotonic() + _PATIENCE_S
        while not condition(self.status()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"the change did not happen: {self.status()}")
            time.sleep(0.3)


def measure(asked: argparse.Namespace, workers: int) -> bool:
    """Runs one kind of lane, prints its results and returns whether all aims were met."""
    home = ROOT / "models"
    source = read_version(home, asked.model, max(find_versions(home)[asked.model]))
    with tempfile.TemporaryDirectory() as folder:
        models, log, port = Path(folder, "models"), Path(folder, "service.log"), free_port()
        owner = Owner(models, port, source)
        for _ in range(2):
            owner.publish()
        (models / "repository.toml").write_text(
            f'default = "{asked.model}"\n'
            f'[models.{asked.model}]\nload = {{ newest = 2 }}\nrequire = {{ labels = "any" }}\n'
        )
        settings = {"models_dir": models, "port": port, "workers": workers}
        settings |= {"models_poll_s": 0.5, "log_level": "info"}
        environment = {f"CONVSERVE_{name.upper()}": str(one) for name, one in settings.items()}
        command = [sys.executable, "-m", "convserve", "serve"]
        with ServerTree(command, os.environ | environment, ROOT, log) as tree:
            wait_until_ready(port)
            return _measure(asked, owner, tree)


def _measure(asked: argparse.Namespace, owner: Owner, tree: ServerTree) -> bool:
    clients = Clients(owner.port, asked.clients, owner.name)
    try:
        time.sleep(2)
        clients.next_phase()  # warm
        time.sleep(asked.quiet_s)
        before, memory = clients.next_phase(), settled(tree, 0)
        begun_s = time.monotonic()
        for number in range(asked.switches):
            owner.switch(number)
            if number * asked.failures // asked.switches != (
                (number + 1) * asked.failures // asked.switches
            ):
                owner.fail()
        took_s = time.monotonic() - begun_s
        during = clients.next_phase()
    finally:
        clients.stop()

    after = settled(tree, 2)
    said = owner.state()
    agrees = str(said.decision.models[owner.name].answer) == owner.status()["answers"]
    growth = during.percentile_ms(99) / before.percentile_ms(99)
    print("| phase | seconds | answers | failed | mixed | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|")
    for name, seconds, one in (("before", asked.quiet_s, before), ("during", took_s, during)):
        print(
            f"| {name} | {seconds:.0f} | {len(one.latencies_s)} | {one.failed.total()} | {one.mixed} "
            f"| {one.percentile_ms(50):.1f} | {one.percentile_ms(99):.1f} |"
        )
    print(f"\np99 during / before: {growth:.2f}; the file says what is served: {agrees}")
    print(
        f"PSS {memory.pss_bytes / _MB:.0f} -> {after.pss_bytes / _MB:.0f} MB, threads "
        f"{memory.threads} -> {after.threads}, descriptors {memory.descriptors} -> "
        f"{after.descriptors}\n",
        flush=True,
    )
    failed = before.failed.total() + during.failed.total() + before.mixed + during.mixed
    return not failed and agrees and growth <= _MAX_P99_GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--failures", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--quiet-s", type=float, default=20.0, help="without a change, before")
    asked = parser.parse_args()

    return measure_kinds(measure, asked)


if __name__ == "__main__":
    sys.exit(main())
