"""A whole load test: prepares the requests, checks that the server answers, runs, sums up."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

from convserve.loadtest.bodies import BODIES
from convserve.loadtest.bodies import Options as CallOptions
from convserve.loadtest.pictures import Picture
from convserve.loadtest.results import Checks, ErrorCount, Machine, Result, Settings
from convserve.loadtest.running.objective import Objective
from convserve.loadtest.running.profiles import PROFILES, Findings, Profile, Rates
from convserve.loadtest.running.progress import Progress
from convserve.loadtest.running.recorder import AnswerCheck
from convserve.loadtest.running.server import Observer
from convserve.loadtest.running.trial import Course, Runner
from convserve.loadtest.secrets import hide_in_url
from convserve.loadtest.sending.fleet import SenderFailed
from convserve.loadtest.sending.plan import Plan, Target, write_requests
from service.system.cpus import usable_cpus
from service.system.version import package_version

_EXAMPLE: Final = 200  # characters of an answer in a message
_DETAIL: Final = re.compile(r'"detail"\s*:\s*"([^"\\]+)"')


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    url: str
    target: Target
    body: str
    call: CallOptions
    profile: Profile
    rates: Rates
    objective: Objective
    poisson: bool = True
    timeout_s: float = 10.0
    n_processes: int = 1
    pictures_per_request: int = 1
    broken_share: float = 0.0
    seed: int = 0
    command: str = ""  # that runs it again


@dataclass(frozen=True, slots=True)
class Load:
    """The pictures to send."""

    good: Sequence[Picture]
    broken: Sequence[Picture]
    source: str
    expected: dict[str, str] | None = None  # first class by picture name


class LoadTest:
    """One load test; its result is whole even if the server never answered."""

    def __init__(self, options: Options, load: Load, folder: Path, progress: Progress) -> None:
        """Writes the requests into `folder`; raises ValueError if the body kind cannot make them."""
        self._options, self._load = options, load
        self._observer = Observer(options.target, options.call.headers)

        n = options.pictures_per_request
        groups = _groups(load.good, n)
        # One broken picture in each of these requests. The others beside it must not be hurt.
        broken = [[one, *groups[at % len(groups)][1:]] for at, one in enumerate(load.broken)]
        requests = [_request(options, group) for group in (*groups, *broken)]
        self._path = hide_in_url(_path(requests[0]))

        file = folder / "requests"
        places = write_requests(file, requests)
        self._plan = Plan(
            options.target,
            str(file),
            places[: len(groups)],
            places[len(groups) :],
            broken_share=options.broken_share,
            poisson=options.poisson,
            seed=options.seed,
            timeout_s=options.timeout_s,
            body=options.body,
            n_pictures=n,
        )
        self._check = AnswerCheck(
            [[picture.name for picture in group] for group in groups],
            [["", *(picture.name for picture in group[1:])] for group in broken],
            load.expected or {},
        )
        self._runner = Runner(
            self._check, options.objective, options.n_processes, folder, progress, self._observer
        )

    def stop(self) -> None:
        """Ends it early, with a result of what was seen so far."""
        self._runner.stop()

    def run(self) -> Result:
        started_at = datetime.now(UTC)
        found = Findings()
        try:
            found = self._first_answer()
            if not found.invalid_because:
                self._observer.begin()
                found = PROFILES[self._options.profile](
                    self._runner, self._plan, self._options.rates
                )
        except SenderFailed as error:
            found.invalid_because.append(str(error))
        if self._runner.failure is not None:
            found.invalid_because.append(self._runner.failure)
        return self._result(started_at, found)

    def _first_answer(self) -> Findings:
        """Sends one request, and says what is wrong if its answer is not one."""
        timeout_s = self._options.timeout_s
        plan = replace(
            self._plan, good=self._plan.good[:1], broken=[], n_requests=1, seconds=timeout_s
        )
        outcome = self._runner.run(Course("first", plan, 0.0, timeout_s, "", watched=False))

        found = Findings()
        if not outcome.trial.n_ok and not self._runner.was_stopped():
            found.errors = outcome.recorder.errors()
            found.invalid_because = [self._explain(error) for error in found.errors]
        return found

    def _explain(self, error: ErrorCount) -> str:
        place = self._options.target.authority
        start = _detail(error.example)
        if error.status is None:
            hint = " (--insecure does not verify it)" if "certificate" in start else ""
            return f"{place} does not answer: {error.code.replace('_', ' ')}: {start}{hint}"

        place += self._path
        if error.code == "bad_answer":
            kind = self._options.body
            return f"{place} does not answer as the body kind {kind!r} expects: {start}"
        if error.code == "wrong_answer":
            return f"{place} gives a wrong answer: {'; '.join(self._check.examples)}"
        return (
            f"{place} answers {error.status} ({error.code}): {start}. "
            "--path, --body, --model and --header say what to send"
        )

    def _result(self, started_at: datetime, found: Findings) -> Result:
        chosen = found.chosen
        check = self._check
        broken = chosen.recorder if chosen else None
        return Result(
            started_at=started_at,
            valid=not found.invalid_because,
            invalid_because=found.invalid_because,
            interrupted=self._runner.was_stopped() and self._runner.failure is None,
            objective_met=chosen.trial.objective_met if chosen and chosen.trial.n_sent else None,
            settings=self._settings(),
            machine=_machine(),
            server=self._observer.end(self._runner.memory),
            summary=chosen.trial if chosen else None,
            trials=[one.trial for one in found.outcomes],
            intervals=[part for one in found.outcomes for part in one.recorder.intervals],
            errors=chosen.recorder.errors() if chosen else found.errors,
            stages=chosen.recorder.stages() if chosen else [],
            checks=Checks(
                n_answers=check.n_answers,
                n_changed=check.n_changed,
                n_unexpected=None if self._load.expected is None else check.n_unexpected,
                examples=check.examples,
                n_broken=broken.n_broken if broken else 0,
                n_broken_accepted=broken.n_broken_accepted if broken else 0,
            ),
            capacity=found.capacity,
            recovery=found.recovery,
            drift=found.drift,
        )

    def _settings(self) -> Settings:
        options, rates = self._options, self._options.rates
        closed = rates.clients is not None
        return Settings(
            url=options.url,
            profile=options.profile,
            body=options.body,
            path=self._path,
            arrivals="closed" if closed else "poisson" if options.poisson else "even",
            rate_per_s=rates.rate_per_s,
            peak_per_s=rates.peak_per_s,
            clients=rates.clients,
            duration_s=rates.duration_s,
            warmup_s=rates.warmup_s,
            timeout_s=options.timeout_s,
            n_processes=options.n_processes,
            n_pictures=len(self._load.good),
            pictures=self._load.source,
            picture_bytes=round(median(len(one.content) for one in self._load.good)),
            pictures_per_request=options.pictures_per_request,
            broken_share=options.broken_share,
            seed=options.seed,
            objective=options.objective.text,
            command=options.command,
        )


def _groups(pictures: Sequence[Picture], n: int) -> list[list[Picture]]:
    """Returns groups of `n` pictures that hold each picture; the last one starts over."""
    starts = range(0, len(pictures), n)
    return [[pictures[(at + step) % len(pictures)] for step in range(n)] for at in starts]


def _request(options: Options, pictures: Sequence[Picture]) -> bytes:
    """Returns a whole HTTP request."""
    call = BODIES[options.body].call([one.content for one in pictures], options.call)
    headers = {
        "host": ("Host", options.target.authority),
        "user-agent": ("User-Agent", f"convserve-loadtest/{package_version()}"),
        **{name.lower(): (name, value) for name, value in call.headers},
        **{name.lower(): (name, value) for name, value in options.call.headers},
        "content-length": ("Content-Length", str(len(call.content))),
    }
    lines = [f"{name}: {value}" for name, value in headers.values()]
    lines.insert(0, f"{call.method} {call.path} HTTP/1.1")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + call.content


def _path(request: bytes) -> str:
    return request.split(b" ", 2)[1].decode("latin-1")


def _detail(answer: str) -> str:
    """Returns the detail of a problem document, else the beginning of the answer."""
    found = _DETAIL.search(answer)
    return found[1] if found else " ".join(answer.split())[:_EXAMPLE]


def _machine() -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        n_cores=usable_cpus(),
        python=platform.python_version(),
        convserve=package_version(),
    )


def _processor() -> str:
    # `platform.processor` knows only the architecture on Linux.
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{platform.machine()}, {line.partition(':')[2].strip()}"
    return platform.machine()
