"""The result of a load test, as written to `result.json`.

Times count from the start of the measured time, after the warm-up. A latency counts from the time at
which a request should have been sent. It is null where the percentile falls on a request that got no
answer, so a lost request is slower than every other one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1
FILE: Final = "result.json"

Share = Annotated[float, Field(ge=0, le=1)]


def _printable(text: str) -> str:
    # File names and answers may hold any bytes. JSON is UTF-8, and a terminal obeys what is not text.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in text)


Text = Annotated[str, AfterValidator(_printable)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Part):
    """The machine that sent the requests."""

    system: str
    processor: str
    n_cores: int = Field(description="Cores that the sender may use.")
    python: str
    convserve: str


class Settings(_Part):
    """What was asked for."""

    url: Text
    profile: Literal["steady", "ramp", "spike", "soak"]
    body: str = Field(description="Kind of request body.")
    path: Text
    arrivals: Literal["poisson", "even", "closed"] = Field(
        description="closed: each client sends its next request after its last answer."
    )
    rate_per_s: float | None = Field(description="Requests a second; null if closed, or searched.")
    peak_per_s: float | None = Field(description="Of a spike.")
    clients: int | None
    duration_s: float
    warmup_s: float
    timeout_s: float
    n_processes: int
    n_pictures: int
    pictures: Text = Field(description="Where the pictures came from.")
    picture_bytes: int = Field(description="Median size of a picture.")
    pictures_per_request: int
    broken_share: Share
    seed: int
    objective: str
    command: Text = Field(default="", description="Command line that runs it again.")


class Latency(_Part):
    """Latencies of one stretch of time, in ms; null where a percentile was never answered."""

    n: int = Field(description="Answered requests and those that got no answer; not refusals.")
    n_unanswered: int
    mean_ms: float | None = Field(description="Of the answered ones.")
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    histogram: str = Field(
        description="Of the answered ones, in microseconds: an HdrHistogram, V2 compressed, base64."
    )


class Stretch(_Part):
    """What happened to the requests of one stretch of time, by their intended send time."""

    name: str
    start_s: float
    seconds: float
    target_per_s: float | None = Field(description="The rate asked for; null if closed.")
    sent_per_s: float
    goodput_per_s: float = Field(description="Right answers to intact pictures.")
    n_sent: int
    n_ok: int
    n_refused: int = Field(description="Answered 429 or 503.")
    n_errors: int = Field(description="Every request with another end than the right one.")
    latency: Latency


class Trial(Stretch):
    """A stretch that was judged by the objective: the whole run, or one step of a ramp."""

    objective_met: bool
    misses: list[str] = Field(description="Each term of the objective that was missed.")
    sender: Sender


class Sender(_Part):
    """Whether the sender itself kept up."""

    lag_p50_ms: float | None = Field(description="From the intended to the actual send; open loop.")
    lag_p99_ms: float | None
    lag_max_ms: float | None
    busiest_core: float = Field(description="CPU seconds a second of the busiest process.")
    cpu_us_per_request: float
    n_held: int = Field(
        default=0, description="Requests that waited because all its connections were in use."
    )
    n_reconnects: int = Field(
        description="Requests sent again because a kept connection was closed."
    )


class ErrorCount(_Part):
    """Requests that ended alike."""

    code: str = Field(description="The service's error code, or the sender's, such as timeout.")
    status: int | None = Field(description="HTTP status; null without an answer.")
    n: int
    broken: bool = Field(description="Whether the pictures were broken on purpose.")
    example: Text = Field(description="The beginning of one answer or message.")


class Stage(_Part):
    """One entry of the answers' `Server-Timing`, in ms."""

    name: str
    n: int
    mean_ms: float
    p50_ms: float
    p99_ms: float


class Checks(_Part):
    """Whether the answers were right, beyond their status."""

    n_answers: int = Field(description="Pictures whose first class was read.")
    n_changed: int = Field(description="Whose first class differed from an earlier answer.")
    n_unexpected: int | None = Field(description="That differed from --expect; null without it.")
    examples: list[Text]
    n_broken: int = Field(description="Requests with a picture broken on purpose.")
    n_broken_accepted: int = Field(description="Of these, answered as if they were intact.")


class MetricChange(_Part):
    """One series of the server's own metrics, before and after."""

    name: str = Field(description='As scraped, with labels: `x_total{code="overloaded"}`.')
    kind: Literal["counter", "gauge", "histogram", "other"]
    before: float
    after: float


class Server(_Part):
    """What the server says about itself."""

    software: str | None = Field(description="Name and version, where it tells.")
    models: list[str] = Field(description="NAME/VERSION of each.")
    memory_bytes: list[tuple[float, float]] = Field(
        description="process_resident_memory_bytes as (seconds, bytes)."
    )
    metrics: list[MetricChange] = Field(description="Series that exist or changed.")
    metrics_seconds: float | None = Field(
        default=None, description="Time between the two readings of the metrics."
    )


class Capacity(_Part):
    """The highest rate that kept the objective, and how sure that is."""

    rate_per_s: float
    kept_up_to_per_s: float = Field(description="The highest rate whose trials all kept it.")
    missed_from_per_s: float | None = Field(
        description="The lowest rate that missed it; null if none did."
    )
    statement: str


class Recovery(_Part):
    """What a spike did, and how long the server took to recover."""

    before_p99_ms: float | None
    during_p99_ms: float | None
    recovered_after_s: float | None = Field(
        description="From the end of the spike to the first interval as fast as before it; "
        "null if that never came."
    )


class Drift(_Part):
    """The first tenth of a soak against the last."""

    p50_ratio: float | None
    p99_ratio: float | None
    memory_ratio: float | None


class Result(_Part):
    """One load test."""

    schema_version: Literal[1] = SCHEMA_VERSION
    started_at: datetime
    valid: bool
    invalid_because: list[Text]
    interrupted: bool
    objective_met: bool | None = Field(description="null if nothing was measured.")
    settings: Settings
    machine: Machine
    server: Server
    summary: Trial | None = Field(
        description="The whole measured time; of a ramp, the trial at its capacity."
    )
    trials: list[Trial] = Field(description="Steps of a ramp in order, else the run itself.")
    intervals: list[Stretch] = Field(
        description="Equal parts of the measured time, or of each trial of a ramp."
    )
    errors: list[ErrorCount]
    stages: list[Stage]
    checks: Checks
    capacity: Capacity | None = None
    recovery: Recovery | None = None
    drift: Drift | None = None


def read_result(file: Path) -> Result:
    """Reads a result or a folder with one; raises OSError, or ValueError if it is not one."""
    if file.is_dir():
        file /= FILE
    return Result.model_validate_json(file.read_bytes())


def write_result(result: Result, folder: Path) -> Path:
    file = folder / FILE
    file.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return file
