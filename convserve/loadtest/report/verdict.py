"""What a load test says, in words for somebody who reads nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convserve.loadtest.report import numbers
from convserve.loadtest.results import Result, Trial

SYMBOLS: Final = {"good": "\N{HEAVY CHECK MARK}", "bad": "\N{HEAVY BALLOT X}", "unsure": "!"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`tone` is a key of `SYMBOLS`."""

    tone: str
    headline: str
    sentence: str
    reasons: tuple[str, ...]


def verdict_of(result: Result) -> Verdict:
    met, capacity, summary = result.objective_met, result.capacity, result.summary
    reasons = [_as_sentence(reason) for reason in result.invalid_because]
    if result.interrupted:
        reasons.append(_stopped(result))

    if not result.valid:
        headline, tone = "Invalid: do not use these numbers", "unsure"
    elif met is None or not result.trials:
        headline, tone = "Nothing was measured", "unsure"
    elif capacity and met:
        headline, tone = f"Capacity: {numbers.short(capacity.rate_per_s)} requests a second", "good"
    else:
        headline, tone = ("Objective met", "good") if met else ("Objective missed", "bad")

    if capacity:
        sentence = capacity.statement
        if summary:
            sentence = f"{sentence.rstrip('.')}. At {_rate(summary)}, {_what_happened(summary)}."
    elif summary and summary.n_sent:
        sentence = _judged(result, summary)
    else:
        sentence = "There is nothing to judge: no request was measured."
    return Verdict(tone, headline, sentence, tuple(reasons))


def _stopped(result: Result) -> str:
    measured_s = sum(trial.seconds for trial in result.trials)
    if result.settings.profile == "ramp":
        return f"It was stopped early, after {numbers.count(len(result.trials), 'trial')}."
    asked = numbers.duration(result.settings.duration_s)
    return f"It was stopped early, after {numbers.duration(measured_s)} of {asked}."


def _judged(result: Result, summary: Trial) -> str:
    happened = f"t {_rate(summary)}, {_what_happened(summary)}."
    if not result.valid:
        return f"What was seen: a{happened}"
    if summary.objective_met:
        objective = numbers.objective(result.settings.objective)
        return f"The server kept the objective, {objective}. A{happened}"

    even = " even at the lowest rate" if result.settings.profile == "ramp" else ""
    misses = "; ".join(_miss(miss) for miss in summary.misses)
    return f"The server missed the objective{even}: {misses}. A{happened}"


def finding(miss: str) -> str:
    """Returns what was found instead of an objective's term: p99 was 312.0 ms."""
    return miss.partition(": ")[2] or miss


def measure_of(miss: str) -> str:
    """Returns what missed its limit, such as p99 or errors."""
    return miss.partition("<")[0].strip()


def _miss(miss: str) -> str:
    term, colon, found = miss.partition(": ")
    return f"{found} (the objective is {numbers.objective(term)})" if colon else miss


def _as_sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:].removesuffix(".") + "."


def _rate(summary: Trial) -> str:
    per_s = summary.sent_per_s if summary.target_per_s is None else summary.target_per_s
    return f"{numbers.exact(round(per_s, 1))} requests a second"


def _what_happened(summary: Trial) -> str:
    latency = summary.latency
    if latency.n == latency.n_unanswered:
        answered = "no request got an answer" if latency.n else "the server accepted no request"
    elif latency.p99_ms is not None and latency.p50_ms is not None:
        half, most = numbers.milliseconds(latency.p50_ms), numbers.milliseconds(latency.p99_ms)
        answered = f"half of them were answered within {half} and 99% within {most}"
    else:
        lost = numbers.percent(latency.n_unanswered / latency.n)
        answered = f"{lost} of them got no answer"

    if not summary.n_errors:
        return f"{answered}, and none failed"
    failed = f"{summary.n_errors:,} of {summary.n_sent:,}"
    kind = "were refused" if summary.n_refused == summary.n_errors else "failed or were refused"
    if not summary.n_refused:
        kind = "failed"
    return f"{answered}, and {failed} {kind} ({numbers.percent(summary.n_errors / summary.n_sent)})"
