"""All settings of the service: one frozen object, built at the entry point and passed down.

Nothing below `app.create_app` sees it whole, and no other module reads the environment. Every field
is the variable CONVSERVE_<FIELD> and the flag --<field> of `convserve serve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

ENVIRONMENT_PREFIX: Final = "CONVSERVE_"


class SettingsInvalid(Exception):
    """A setting is unknown or outside its bounds; the message names it."""


def _empty_is_unset(value: Any) -> Any:
    # Compose passes VARIABLE="" for a variable that is not set on the host.
    return None if value == "" else value


OptionalInt = Annotated[int | None, BeforeValidator(_empty_is_unset)]
OptionalStr = Annotated[str | None, BeforeValidator(_empty_is_unset)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_unset)]


class Settings(BaseModel):
    """The service's settings; each has bounds, a unit in its name and its trade-off described."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")

    models_dir: OptionalPath = Field(
        None,
        description="The model repository. Unset: ./models if it holds a version, otherwise the "
        "models that came with the package.",
    )
    default_model: OptionalStr = Field(
        None,
        description="The model /v1/classify uses. Unset: efficientnet_lite0 if it is there, "
        "otherwise the first name in alphabetical order.",
    )
    versions_per_model: int = Field(
        1,
        ge=0,
        le=100,
        description="How many of the newest versions of each model are loaded; 0 loads all. Each "
        "costs the memory of its graph.",
    )

    models_poll_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds between looks for versions published meanwhile, which are proven and "
        "then adopted without a restart; 0 looks at the start and on SIGHUP only.",
    )

    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Execution provider. auto takes CUDA where it works and says so in "
        "/v1/models where it fell back to the CPU; cuda refuses to start without it.",
    )
    lanes: OptionalInt = Field(
        None,
        ge=1,
        le=64,
        description="Threads that run the network at the same time. Unset: one per usable core on "
        "the CPU, one on a GPU. A request that is alone gets all cores either way.",
    )
    max_batch_size: OptionalInt = Field(
        None,
        ge=1,
        le=256,
        description="Pictures in one run at most. Unset: 8 on a CPU, 32 on a GPU. Larger makes "
        "more of a GPU, smaller answers more evenly; `convserve tune` measures it.",
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="How long a batch may wait for company, from its first entry. 0 takes what "
        "queued while the engine was busy: no added latency when idle.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that decode and run the network, in place of the threads of lanes. "
        "0: none. A crash in native code, a hang or a leak then costs only what one of them had in "
        "hand; each costs the memory of every graph. One per core makes the most of a CPU.",
    )
    worker_max_memory_bytes: OptionalInt = Field(
        None,
        ge=100_000_000,
        description="A worker that has grown beyond this resident memory is replaced when another "
        "has been started, one at a time. Unset: never.",
    )

    max_in_flight: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Pictures accepted and not yet answered; more are refused with 503. Larger "
        "absorbs bursts, smaller keeps the wait short.",
    )
    max_in_flight_bytes: int = Field(
        268_435_456,
        ge=1_000_000,
        description="Bytes of all uploads held at the same time; more are refused with 503.",
    )
    max_body_bytes: int = Field(
        20_971_520, ge=1_000, le=1_000_000_000, description="Size of one request body at most."
    )
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Pictures in one multipart or JSON request at most."
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=170_000_000,
        description="Width x height of one picture at most; 50 million admits 48 MP phones.",
    )

    load_timeout_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Loading and proving all models may take this time; then the process ends.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Deadline of one request, from its head to its answer, where the client sends "
        "no X-Request-Timeout-Ms (300 s at most); then 504.",
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="A connection must deliver a request's head in this time, and its body in this "
        "time plus one second for every 50 kB; then 408.",
    )
    keep_alive_s: int = Field(
        60, ge=1, le=3600, description="An idle connection is closed after this time."
    )
    drain_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="After SIGTERM: how long to go on serving while /readyz says no. At least "
        "the interval at which the load balancer probes.",
    )
    grace_s: int = Field(
        30, ge=1, le=3600, description="After that: how long accepted requests may take to finish."
    )

    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="info writes one line a request."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_wait_ms >= self.request_timeout_s * 1e3:
            raise ValueError("max_wait_ms must be less than request_timeout_s")
        if self.lanes and self.workers:
            raise ValueError("lanes are threads and workers are processes: set one of the two")
        return self


def from_environment(
    environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Builds the settings from CONVSERVE_* variables and, above them, explicit overrides.

    Args:
        environment: usually `os.environ`.
        overrides: by field name, for example from the command line.

    Raises:
        SettingsInvalid: a variable is unknown or a value is out of bounds.
    """
    values: dict[str, Any] = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    values.update(overrides or {})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if not name:  # two settings contradict each other; the message names both
            raise SettingsInvalid(str(first["msg"]).removeprefix("Value error, ")) from error
        if first["type"] == "extra_forbidden":
            raise SettingsInvalid(f"{ENVIRONMENT_PREFIX}{name.upper()}: no such setting") from error
        raise SettingsInvalid(f"{ENVIRONMENT_PREFIX}{name.upper()}: {first['msg']}") from error
