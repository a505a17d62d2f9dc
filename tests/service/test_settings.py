from __future__ import annotations

import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from convserve.commands import convserve
from service.settings import (
    Settings,
    SettingsInvalid,
    flag_of,
    from_environment,
    is_secret,
    service_links,
    without_secrets,
)
from tests.problems import MARKER

FIELDS = Settings.model_fields
FLAGS = [name for name in FIELDS if not is_secret(name)]
OPTIONAL = [name for name, field in FIELDS.items() if field.default is None]
# A key is refused without its certificate.
NEEDED = {
    name: {"CONVSERVE_SSL_CERTFILE": "a.pem"} for name in FIELDS if name.startswith("ssl_key")
}


def bound(field: FieldInfo, *names: str) -> Any:
    """The first of these bounds that the field has."""
    found = [getattr(one, name) for name in names for one in field.metadata if hasattr(one, name)]
    return found[0] if found else None


def kind(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    if isinstance(annotation, types.UnionType):
        return next(one for one in typing.get_args(annotation) if one is not types.NoneType)
    return annotation


def sample(field: FieldInfo) -> Any:
    """A valid value that is not the default."""
    if field.examples:
        return field.examples[0]
    if typing.get_origin(kind(field)) is typing.Literal:
        return typing.get_args(kind(field))[-1]
    if kind(field) is bool:
        return not field.default
    if kind(field) in (int, float):
        low, high = bound(field, "ge"), bound(field, "le")
        value = high if low is None or low == field.default else low
        return kind(field)(low + 1 if value is None else value)
    return "somewhere"


@pytest.mark.parametrize("name", FIELDS)
def test_settings_every_field_described_and_bounded(name):
    field = FIELDS[name]

    assert field.description
    assert field.description.endswith(".")
    if kind(field) in (int, float):
        assert bound(field, "ge", "gt") is not None
    else:
        closed = typing.get_origin(kind(field)) is typing.Literal
        assert closed or kind(field) in (bool, str, Path, SecretStr)


@pytest.mark.parametrize("name", FIELDS)
def test_settings_variable_of_every_field_is_read(name):
    value = sample(FIELDS[name])

    settings = from_environment({f"CONVSERVE_{name.upper()}": str(value), **NEEDED.get(name, {})})

    wanted = kind(FIELDS[name])(value) if kind(FIELDS[name]) in (Path, SecretStr) else value
    assert getattr(settings, name) == wanted


@pytest.mark.parametrize("name", FLAGS)
def test_settings_flag_of_every_field_is_read(name):
    value, flag = sample(FIELDS[name]), "--" + name.replace("_", "-")
    if kind(FIELDS[name]) is bool:
        arguments = [flag if value else f"--no-{flag[2:]}"]
    else:
        arguments = [flag, str(value)]

    result = CliRunner().invoke(
        convserve, ["serve", "--print-settings", *arguments], env=NEEDED.get(name)
    )

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed[name] == value
    defaults = json.loads(from_environment(NEEDED.get(name, {})).model_dump_json())
    assert {k: v for k, v in printed.items() if k != name} == {
        k: v for k, v in defaults.items() if k != name
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, limit + step)
        for name, field in FIELDS.items()
        for limit, step in (
            (bound(field, "ge"), -1),
            (bound(field, "gt"), 0),
            (bound(field, "le"), 1),
        )
        if limit is not None
    ],
)
def test_settings_value_out_of_bounds_refused_by_name(name, value):
    variable, flag = f"CONVSERVE_{name.upper()}", flag_of(name)

    with pytest.raises(SettingsInvalid, match=rf"^{variable} \({flag}\): must be "):
        from_environment({variable: str(value)})
    with pytest.raises(SettingsInvalid, match=rf"^{flag} \({variable}\): must be "):
        from_environment({variable: "1"}, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", 99999, "--port (CONVSERVE_PORT): must be at most 65535, got 99999"),
        ("port", -1, "--port (CONVSERVE_PORT): must be at least 0, got -1"),
        ("request_timeout_s", 0.0, "must be more than 0, got 0.0"),
        ("request_timeout_s", 300.5, "must be at most 300, got 300.5"),
        ("max_body_bytes", 1, "must be at least 1000, got 1"),
        ("port", "x", "must be a whole number, got 'x'"),
        ("port", 1.5, "must be a whole number, got 1.5"),
        ("port", "9" * 5000, "must be a whole number of fewer digits, got '999"),
        ("drain_s", "x", "must be a number, got 'x'"),
        ("drain_s", "nan", "must be a finite number, got 'nan'"),
        ("docs", "maybe", "must be true or false, got 'maybe'"),
        ("provider", "tpu", "must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_settings_refused_value_says_the_rule_and_the_value(name, value, message):
    with pytest.raises(SettingsInvalid, match=re.escape(message)):
        from_environment({}, {name: value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "many", ""])
@pytest.mark.parametrize("name", ["drain_s", "port"])
def test_settings_value_that_is_not_a_number_refused(name, value):
    with pytest.raises(SettingsInvalid, match=name.upper()):
        from_environment({f"CONVSERVE_{name.upper()}": value})


def test_settings_unknown_variable_refused_by_name():
    with pytest.raises(SettingsInvalid, match="CONVSERVE_MAX_WAIT: no such setting"):
        from_environment({"CONVSERVE_MAX_WAIT": "1"})


def test_settings_unknown_provider_refusal_lists_the_known_ones():
    with pytest.raises(SettingsInvalid, match="'auto', 'cpu' or 'cuda'"):
        from_environment({"CONVSERVE_PROVIDER": "tpu"})


def test_settings_variables_of_other_programs_are_ignored():
    assert from_environment({"PATH": "/bin", "CONV": "1"}) == Settings()


@pytest.mark.parametrize("name", OPTIONAL)
def test_settings_empty_optional_variable_is_unset(name):
    assert from_environment({f"CONVSERVE_{name.upper()}": ""}) == Settings()


def test_settings_flag_wins_over_variable():
    assert from_environment({"CONVSERVE_PORT": "1"}, {"port": 2}).port == 2


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_settings_wait_longer_than_the_timeout_refused():
    with pytest.raises(
        SettingsInvalid, match="--max-wait-ms must be less than --request-timeout-s"
    ):
        from_environment({"CONVSERVE_MAX_WAIT_MS": "1000", "CONVSERVE_REQUEST_TIMEOUT_S": "1"})


def test_settings_lanes_and_workers_together_refused():
    with pytest.raises(SettingsInvalid, match="set --lanes or --workers, not both"):
        from_environment({"CONVSERVE_LANES": "2", "CONVSERVE_WORKERS": "2"})


@pytest.mark.parametrize("lanes", ["", "2"], ids=["unset", "set"])
def test_settings_lanes_without_workers_accepted(lanes):
    settings = from_environment({"CONVSERVE_LANES": lanes, "CONVSERVE_WORKERS": "0"})

    assert settings.lanes == (int(lanes) if lanes else None)


def test_settings_two_equal_ports_refused():
    with pytest.raises(
        SettingsInvalid, match="--admin-port and --port must differ, got 8000 for both"
    ):
        from_environment({"CONVSERVE_ADMIN_PORT": "8000"})


# Root path


@pytest.mark.parametrize(
    ("given", "root_path"),
    [
        ("", ""),
        ("/", ""),
        ("/vision", "/vision"),
        ("/vision/", "/vision"),
        ("/a/b-c.d", "/a/b-c.d"),
    ],
)
def test_settings_root_path_has_no_slash_at_its_end(given, root_path):
    assert from_environment({}, {"root_path": given}).root_path == root_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("vision", "must be a path like /vision, of letters, digits and ._~- only, got 'vision'"),
        ("//evil", "must be a path like"),
        ("/a b", "must be a path like"),
        ("/a\r\nx: y", "must be a path like"),
        ("/v1", "must not begin like a path of the service, got '/v1'"),
        ("/docs/x", "must not begin like a path of the service"),
        ("/" + "x" * 200, "must have at most 200 characters"),
    ],
)
def test_settings_root_path_that_no_proxy_can_use_refused(given, message):
    with pytest.raises(SettingsInvalid, match="root-path") as refused:
        from_environment({}, {"root_path": given})

    assert message in str(refused.value)


# Formats of pictures


@pytest.mark.parametrize(
    ("given", "formats"), [("", ""), ("jpeg", "jpeg"), ("JPEG, png,WebP", "jpeg,png,webp")]
)
def test_settings_image_formats_are_names_in_lower_case(given, formats):
    assert from_environment({}, {"image_formats": given}).image_formats == formats


@pytest.mark.parametrize(
    ("given", "unknown"), [("jpeg,tiff", "tiff"), ("jpg", "jpg"), ("jpeg,", ""), (",", "")]
)
def test_settings_unknown_image_format_refused_with_the_known(given, unknown):
    with pytest.raises(SettingsInvalid, match="image-formats") as refused:
        from_environment({}, {"image_formats": given})

    assert "must be of jpeg, png, webp, gif, bmp" in str(refused.value)
    assert f"{unknown!r} is none of them, got {given!r}" in str(refused.value)


# Forwarded addresses


@pytest.mark.parametrize("given", ["", "127.0.0.1", "10.0.0.0/8, fd00::/8", "unix,::1"])
def test_settings_proxies_are_addresses_or_networks(given):
    assert from_environment({}, {"forwarded_allow_ips": given}).forwarded_allow_ips == given


@pytest.mark.parametrize("given", ["*", "10.0.0.5/8", "127.0.0.1,proxy", "127.0.0.1,", ",", " "])
def test_settings_proxies_that_are_no_addresses_refused(given):
    with pytest.raises(SettingsInvalid, match="must be addresses, networks or unix"):
        from_environment({}, {"forwarded_allow_ips": given})


# Kubernetes

# As in a pod in the namespace of two services, one of them with two ports and one with IPv6.
POD = {
    "CONVSERVE_SERVICE_HOST": "10.0.0.5",
    "CONVSERVE_SERVICE_PORT": "8000",
    "CONVSERVE_SERVICE_PORT_HTTP": "8000",
    "CONVSERVE_PORT": "tcp://10.0.0.5:8000",
    "CONVSERVE_PORT_8000_TCP": "tcp://10.0.0.5:8000",
    "CONVSERVE_PORT_8000_TCP_PROTO": "tcp",
    "CONVSERVE_PORT_8000_TCP_PORT": "8000",
    "CONVSERVE_PORT_8000_TCP_ADDR": "10.0.0.5",
    "CONVSERVE_ADMIN_SERVICE_HOST": "fd00::5",
    "CONVSERVE_ADMIN_SERVICE_PORT": "53",
    "CONVSERVE_ADMIN_PORT": "udp://[fd00::5]:53",
    "CONVSERVE_ADMIN_PORT_53_UDP": "udp://[fd00::5]:53",
    "CONVSERVE_ADMIN_PORT_53_UDP_ADDR": "fd00::5",
    "CONVSERVE_SERVICE_SERVICE_HOST": "10.0.0.6",
    "CONVSERVE_SERVICE_PORT_80_TCP": "tcp://10.0.0.6:80",
}


def test_settings_kubernetes_variables_are_ignored():
    assert from_environment({"CONVSERVE_DRAIN_S": "1", **POD}) == Settings(drain_s=1)
    assert service_links({"CONVSERVE_DRAIN_S": "1", **POD}) == sorted(POD)


def test_settings_port_beside_kubernetes_variables_is_read():
    assert from_environment({**POD, "CONVSERVE_PORT": "9000"}).port == 9000


@pytest.mark.parametrize(
    "environment",
    [
        {"CONVSERVE_SERVICE_HOST": "10.0.0.5", "CONVSERVE_SERVICE_PORT": "8000"},
        {"CONVSERVE_PORT_8000_TCP_ADDR": "10.0.0.5"},
        {**POD, "CONVSERVE_SERVICE_HOST": "localhost"},
        {**POD, "CONVSERVE_SERVICE_NAME": "convserve"},
        {**POD, "CONVSERVE_PORT_8000_TCP_PROTO": "http"},
        {**POD, "CONVSERVE_PORTS": "tcp://10.0.0.5:8000"},
        {**POD, "CONVSERVE_PORT": "http://10.0.0.5:8000"},
        {**POD, "CONVSERVE_PORT": "tcp://convserve:8000"},
        {**POD, "CONVSERVE_MAX_SERVICE_PORT": "8000"},
    ],
)
def test_settings_mistakes_like_kubernetes_variables_are_refused(environment):
    with pytest.raises(SettingsInvalid):
        from_environment(environment)


# Secrets


@pytest.mark.parametrize("flag", ["--admin-token", "--ssl-keyfile-password"])
def test_settings_secrets_have_no_flag(flag):
    assert FIELDS.keys() - FLAGS == {"admin_token", "ssl_keyfile_password"}
    result = CliRunner().invoke(convserve, ["serve", "--print-settings", flag, MARKER])

    assert result.exit_code == 2
    assert "No such option" in result.output


def test_settings_secret_is_never_shown():
    result = CliRunner().invoke(
        convserve, ["serve", "--print-settings"], env={"CONVSERVE_ADMIN_TOKEN": MARKER}
    )

    assert json.loads(result.stdout)["admin_token"] == "*" * 10
    assert MARKER not in result.output + repr(Settings(admin_token=MARKER))


def test_settings_secret_that_is_no_text_refused_without_it():
    with pytest.raises(SettingsInvalid) as refused:
        from_environment({}, {"admin_token": [MARKER]})

    assert str(refused.value) == "CONVSERVE_ADMIN_TOKEN: must be text"


def test_settings_secrets_are_not_passed_to_child_processes():
    environment = {"CONVSERVE_ADMIN_TOKEN": MARKER, "CONVSERVE_ADMIN_PORT": "1", "PATH": "/bin"}

    kept = without_secrets(environment)

    assert kept == {"CONVSERVE_ADMIN_PORT": "1", "PATH": "/bin"}
