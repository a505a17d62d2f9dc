"""What a load test found, in a few lines for a terminal."""

from __future__ import annotations

from convserve.loadtest.results import Drift, Recovery, Result


def summary_of(result: Result) -> list[str]:
    """Returns the lines of a summary."""
    lines = []
    trial = result.summary
    if trial is not None and trial.n_sent:
        latency = trial.latency
        lines += [
            f"{trial.sent_per_s:,.1f} requests/s sent, {trial.goodput_per_s:,.1f}/s answered right, "
            f"{trial.n_errors:,} of {trial.n_sent:,} failed",
            f"latency p50 {_ms(latency.p50_ms)}, p90 {_ms(latency.p90_ms)}, "
            f"p99 {_ms(latency.p99_ms)}, maximum {_ms(latency.max_ms)}",
        ]
    wrong = [error for error in result.errors if not error.broken]
    if wrong:
        lines.append("errors: " + ", ".join(f"{error.code} {error.n:,}" for error in wrong))
    if result.checks.n_broken_accepted:
        lines.append(f"{result.checks.n_broken_accepted:,} broken pictures were accepted")
    if result.capacity is not None:
        lines.append(
            f"capacity {result.capacity.rate_per_s:,g} requests/s: {result.capacity.statement}"
        )

    if result.recovery is not None:
        lines.append(_recovery(result.recovery))
    if result.drift is not None:
        lines.append(_drift(result.drift))

    if result.interrupted:
        lines.append("ended early")
    if not result.valid:
        lines.append(f"NOT VALID: {'; '.join(result.invalid_because)}")
    elif result.objective_met:
        lines.append(f"objective met: {result.settings.objective}")
    elif trial is not None:
        lines.append(f"OBJECTIVE MISSED: {'; '.join(trial.misses)}")
    return lines


def _recovery(found: Recovery) -> str:
    after_s = found.recovered_after_s
    when = "not seen" if after_s is None else f"{after_s:g} s after the spike's end"
    before, during = _ms(found.before_p99_ms), _ms(found.during_p99_ms)
    return f"recovery: {when}; p99 {before} before the spike, {during} in it"


def _drift(found: Drift) -> str:
    ratios = {"p50": found.p50_ratio, "p99": found.p99_ratio, "memory": found.memory_ratio}
    parts = (
        f"{name} {'not known' if ratio is None else f'x {ratio:.2f}'}"
        for name, ratio in ratios.items()
    )
    return f"drift, last tenth against the first: {', '.join(parts)}"


def _ms(value: float | None) -> str:
    return "not answered" if value is None else f"{value:,.1f} ms"
