"""All settings of the service: one frozen object, created at the entry point and passed down.

No other module reads the environment. Every field is the variable CONVSERVE_<FIELD> and the flag
--<field> of `convserve serve`. Secrets have no flag, because everybody on a machine can read the
arguments of its processes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

ENVIRONMENT_PREFIX: Final = "CONVSERVE_"
MAX_REQUEST_TIMEOUT_S: Final = 300.0  # a longer one may outlive its client in the queue


class SettingsInvalid(Exception):
    """A setting is unknown or out of bounds; the message names it."""


def _empty_is_unset(value: Any) -> Any:
    # Docker Compose passes VARIABLE="" for a variable that is not set on the host.
    return None if value == "" else value


OptionalInt = Annotated[int | None, BeforeValidator(_empty_is_unset)]
OptionalStr = Annotated[str | None, BeforeValidator(_empty_is_unset)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_unset)]
_OWN_SEGMENTS: Final = ("v1", "docs", "livez", "readyz", "metrics", "openapi.json")


def _check_root_path(value: str) -> str:
    path = value.rstrip("/")
    if path and re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path) is None:
        raise ValueError("must be a path like /vision, of letters, digits and ._~- only")
    if path and path.split("/")[1] in _OWN_SEGMENTS:
        raise ValueError("must not begin like a path of the service")
    return path


def _check_peers(value: str) -> str:
    for entry in value.split(",") if value else ():
        try:
            if entry.strip() != "unix":
                ipaddress.ip_network(entry.strip())
        except ValueError:
            raise ValueError(
                "must be addresses, networks or unix, separated by commas, like "
                f"127.0.0.1,10.0.0.0/8; {entry.strip()[:100]!r} is not one"
            ) from None
    return value


def _check_origins(value: str) -> str:
    for entry in value.split(",") if value else ():
        if (
            re.fullmatch(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", entry.strip())
            is None
        ):
            raise ValueError(
                "must be origins separated by commas, in lower case and without a path, like "
                f"https://example.org; {entry.strip()[:100]!r} is not one"
            )
    return value


def _check_formats(value: str) -> str:
    if not value:
        return value
    from contract.images import DECODERS  # late, because it takes a tenth of a second to import

    names, installed = value.lower().replace(" ", "").split(","), [one.name for one in DECODERS]
    for name in names:
        if name not in installed:
            raise ValueError(
                f"must be of {', '.join(installed)} (what is installed), separated by commas; "
                f"{name[:100]!r} is none of them"
            )
    return ",".join(names)


OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_unset)]


class Settings(BaseModel):
    """The service's settings. Names end in their unit; descriptions are user documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free port.")

    uds: OptionalPath = Field(
        None,
        description="Unix socket to listen on, instead of host and port. Its user and group may connect.",
    )
    ssl_certfile: OptionalPath = Field(
        None,
        description="PEM file with the certificate and its chain; the port then speaks HTTPS only. Read "
        "at the start. If unset: no TLS.",
    )
    ssl_keyfile: OptionalPath = Field(
        None,
        description="PEM file with the certificate's private key. If unset: it is in the file with the "
        "certificate.",
    )
    ssl_keyfile_password_file: OptionalPath = Field(
        None, description="File with the password of an encrypted private key."
    )
    ssl_keyfile_password: OptionalSecret = Field(
        None, description="The password itself, instead of a file. There is no flag for it."
    )
    root_path: Annotated[str, AfterValidator(_check_root_path)] = Field(
        "",
        max_length=200,
        examples=["/vision"],
        description="Path under which a proxy serves the service, such as /vision. Requests are answered "
        "with it and without it, so the proxy may strip it or not.",
    )

    forwarded_allow_ips: Annotated[str, AfterValidator(_check_peers)] = Field(
        "",
        examples=["127.0.0.1,10.0.0.0/8"],
        description="Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and "
        "networks, separated by commas, and unix for the unix socket. If unset: nobody's.",
    )

    cors_origins: Annotated[str, AfterValidator(_check_origins)] = Field(
        "",
        examples=["https://example.org,http://localhost:3000"],
        description="Origins whose pages in a browser may use the service, such as "
        "https://example.org, separated by commas. If unset: none (no CORS headers).",
    )

    models_dir: OptionalPath = Field(
        None,
        description="Model repository. If unset: ./models if it has a version, otherwise the models "
        "in the package.",
    )
    repository_file: OptionalPath = Field(
        None,
        description="File that says which versions are served. If unset: repository.toml in the model "
        "repository. `convserve models` edits it.",
    )
    skip_broken: bool = Field(
        False,
        description="Start although a model cannot be served, if another one can. The broken one is "
        "listed as failed.",
    )

    models_poll_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds between polls of the model repository. New versions are verified, then "
        "served without a restart. 0 polls only on SIGHUP.",
    )

    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Execution provider. auto uses CUDA if it works and the CPU otherwise; "
        "/v1/models gives the reason for a fallback. cuda does not start without CUDA.",
    )
    lanes: OptionalInt = Field(
        None,
        ge=1,
        le=64,
        description="Threads that run batches in parallel. If unset: one per usable core on a CPU, "
        "one on a GPU. On a CPU, a picture that is alone uses all cores. Cannot be combined with "
        "workers.",
    )
    max_batch_size: OptionalInt = Field(
        None,
        ge=1,
        le=256,
        description="Maximum number of pictures in a batch. If unset: 8 on a CPU, 32 on a GPU. Larger batches "
        "use a GPU better, smaller ones give more even latency. `convserve tune` measures both.",
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="How long the first picture of a batch may wait for others. 0 adds no latency: "
        "a batch is whatever queued up while the engine was busy.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Worker processes that decode and run batches, instead of threads; 0 uses "
        "threads. A crash, hang or leak in native code then affects only one worker's pictures. "
        "Each worker takes the memory of all graphs. One per core uses a CPU fully.",
    )
    worker_max_memory_bytes: OptionalInt = Field(
        None,
        ge=100_000_000,
        description="Replace a worker whose resident memory exceeds this, one worker at a time, "
        "after its successor has started. If unset: never.",
    )

    max_in_flight: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Maximum number of pictures in flight; more are refused with 503. Larger "
        "absorbs bursts, smaller keeps waits short.",
    )
    max_in_flight_bytes: int = Field(
        268_435_456,
        ge=1_000_000,
        description="Maximum bytes of all uploads in memory; more are refused with 503.",
    )
    max_body_bytes: int = Field(
        20_971_520, ge=1_000, le=1_000_000_000, description="Maximum size of a request body."
    )
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Maximum number of pictures in a multipart or JSON request."
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=170_000_000,
        description="Maximum width x height of a picture; 50 million accepts photos from 48 MP "
        "phones.",
    )
    image_formats: Annotated[str, AfterValidator(_check_formats)] = Field(
        "",
        examples=["jpeg,png,webp"],
        description="Formats of pictures that are accepted, of jpeg, png, webp, gif, bmp, heic and avif, "
        "separated by commas. Others are refused with 415 before a decoder sees them. If unset: all "
        "that are installed.",
    )

    load_timeout_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Time to load and verify one version; after that the version is not served.",
    )
    load_max_memory_bytes: OptionalInt = Field(
        None,
        ge=50_000_000,
        description="Memory that loading and verifying one version may take; beyond that the version "
        "is not served. If unset: 80% of the memory that is available when the loading begins.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=MAX_REQUEST_TIMEOUT_S,
        description="Time from a request's head to its response; after that 504. Clients can set "
        "their own with X-Request-Timeout-Ms; longer than 300 s counts as 300 s.",
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Time for a request's head to arrive. A body may take as long again, plus one "
        "second for every 50 kB of it; after that 408.",
    )
    keep_alive_s: int = Field(
        60, ge=1, le=3600, description="Time after which an idle connection is closed."
    )
    drain_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="After SIGTERM: time to keep serving while /readyz fails. Should be at least the "
        "interval of the load balancer's probes.",
    )
    grace_s: int = Field(
        30, ge=1, le=3600, description="After the drain time: time for accepted requests to finish."
    )

    admin_port: OptionalInt = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which clients with the admin token change what is served; 0 picks a free "
        "port. If unset: there is no admin port.",
    )
    admin_host: str = Field(
        "127.0.0.1",
        description="Address of the admin port. It has no TLS, so other machines should reach it "
        "only through a proxy that has.",
    )
    admin_token_file: OptionalPath = Field(
        None,
        description="File with the token that the admin port asks for, at least 16 characters. It is "
        "read again for every request, so a new token counts at once.",
    )
    admin_token: OptionalSecret = Field(
        None,
        description="The token itself, instead of a file. There is no flag for it, because everybody "
        "on a machine can read the arguments of its processes.",
    )

    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages to log; info logs one line per request."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_wait_ms >= self.request_timeout_s * 1e3:
            raise ValueError(
                f"--max-wait-ms must be less than --request-timeout-s, got {self.max_wait_ms:g} ms "
                f"and {self.request_timeout_s:g} s"
            )
        if self.lanes and self.workers:
            raise ValueError(
                "lanes are threads and workers are processes: set --lanes or --workers, not both"
            )
        if self.ssl_certfile is None and (
            self.ssl_keyfile or self.ssl_keyfile_password or self.ssl_keyfile_password_file
        ):
            raise ValueError("a private key needs a certificate: set --ssl-certfile")
        if self.ssl_keyfile_password and self.ssl_keyfile_password_file:
            raise ValueError(
                "set CONVSERVE_SSL_KEYFILE_PASSWORD or CONVSERVE_SSL_KEYFILE_PASSWORD_FILE, not both"
            )
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(f"--admin-port and --port must differ, got {self.port} for both")
        return self


def from_environment(
    environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Creates the settings from CONVSERVE_* variables and overrides, by field name, which win.

    Variables of Kubernetes services are ignored.

    Raises:
        SettingsInvalid: a variable is unknown or a value is out of bounds.
    """
    ignored = service_links(environment)
    values: dict[str, Any] = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in ignored
    }
    values.update(overrides or {})

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsInvalid(_explain(error, overrides or {})) from error


# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINK_PORT: Final = re.compile(
    r"(CONVSERVE(?:_[A-Z0-9_]+?)??)_PORT(?:_[0-9]{1,5}_(?:TCP|UDP|SCTP)(?:_(PROTO|PORT|ADDR))?)?"
)
_LINK_SERVICE: Final = re.compile(
    r"(CONVSERVE(?:_[A-Z0-9_]+?)??)_SERVICE_(?:(HOST)|(PORT)(?:_[A-Z0-9_]+)?)"
)
_LINK_URL: Final = re.compile(r"(?:tcp|udp|sctp)://(.+):[0-9]{1,5}")


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Returns the variables that Kubernetes sets in a pod for services called convserve or convserve-*.

    They are told from typing mistakes by their values: a service always has one like
    `tcp://10.0.0.5:8000`.
    """
    services, links = set(), []
    # CONVSERVE_SERVICE_PORT is the port of `convserve` or the URL of `convserve-service`.
    for (name, value), pattern in product(environment.items(), (_LINK_PORT, _LINK_SERVICE)):
        if found := pattern.fullmatch(name):
            service, *kinds = found.groups()
            kind = next((one for one in kinds if one), "URL")
            if _is_link_value(kind, value):
                links.append((service, name))
                services |= {service} if kind == "URL" else set()
    return sorted(name for service, name in links if service in services)


def _is_link_value(kind: str, value: str) -> bool:
    if kind == "PORT":
        return re.fullmatch("[0-9]{1,5}", value) is not None
    if kind == "PROTO":
        return value in ("tcp", "udp", "sctp")
    if kind == "URL":
        url = _LINK_URL.fullmatch(value)
        return url is not None and _is_address(url[1].strip("[]"))
    return _is_address(value)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_secret(name: str) -> bool:
    """Returns whether a setting must not be shown, logged or passed as an argument."""
    return SecretStr in get_args(Settings.model_fields[name].annotation)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for a child process that needs no secrets."""
    secrets = {
        f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields if is_secret(name)
    }
    return {name: value for name, value in environment.items() if name not in secrets}


def flag_of(name: str) -> str:
    """Returns the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


# What a value must be, by the type of pydantic's error; `{}` takes the error's context.
_RULES: Final = {
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "literal_error": "must be {expected}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


# Settings of earlier releases.
_MOVED: Final = {
    "default_model": "is now in repository.toml; `convserve models default NAME` sets it",
    "versions_per_model": "is now in repository.toml: load = { newest = N } for a model",
}


def _explain(error: ValidationError, overrides: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # from `_check`: the message names both settings
        return str(first["msg"]).removeprefix("Value error, ")

    name = str(first["loc"][0])
    variable = f"{ENVIRONMENT_PREFIX}{name}".upper()
    if name in _MOVED:
        return f"{variable}: {_MOVED[name]}"
    if first["type"] == "extra_forbidden":
        return f"{variable}: no such setting; `convserve serve --help` lists them"

    if is_secret(name):
        return f"{variable}: must be text"

    # What the user wrote comes first.
    flag = flag_of(name)
    where = f"{flag} ({variable})" if name in overrides else f"{variable} ({flag})"
    rule = _RULES.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    rule = rule.removeprefix("Value error, ")
    value = first["input"]
    return f"{where}: {rule}, got {repr(value) if isinstance(value, str) else value}"
