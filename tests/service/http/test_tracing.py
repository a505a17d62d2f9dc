from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.tracing import trace_of
from tests import tinymodel

RED = tinymodel.picture("red")
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
GOOD = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (GOOD, 1),
        (GOOD[:-2] + "00", 0),
        (GOOD[:-2] + "ff", 3),
        ("01" + GOOD[2:], 1),
        ("cc" + GOOD[2:] + "-what-the-future-brings", 1),
        ("cc" + GOOD[2:] + "-", 1),
    ],
)
def test_tracing_valid_header_is_continued(sent, flags):
    trace = trace_of([(b"traceparent", sent.encode())])

    assert trace is not None
    assert (trace.trace_id, trace.flags) == (TRACE_ID, flags)
    assert len(trace.span_id) == 16
    assert trace.span_id != PARENT_ID
    assert trace.header()[1] == f"00-{TRACE_ID}-{trace.span_id}-{flags:02x}".encode()


@pytest.mark.parametrize(
    "sent",
    [
        "",
        GOOD.upper(),
        "ff" + GOOD[2:],
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        GOOD + "-more",
        GOOD + "-",
        GOOD + " ",
        GOOD + "\n",
        GOOD[:-1],
        GOOD[3:],
        GOOD.replace("-", "_"),
        GOOD.replace("4b", "4g"),
        "cc" + GOOD[2:] + ".more",
        "cc" + GOOD[2:] + "-\x1b[31m",
        "cc" + GOOD[2:] + "-" + "x" * 500,
    ],
)
def test_tracing_invalid_header_is_ignored(sent):
    assert trace_of([(b"traceparent", sent.encode())]) is None


def test_tracing_two_headers_are_ignored():
    assert trace_of([(b"traceparent", GOOD.encode())] * 2) is None


@given(st.binary(max_size=80))
def test_tracing_answer_never_has_other_characters(sent):
    trace = trace_of([(b"traceparent", sent)])

    assert trace is None or set(trace.header()[1]) <= set(b"0123456789abcdef-")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/classify", 200), ("GET", "/v1/models", 200), ("GET", "/nothing", 404)],
)
def test_tracing_ids_are_in_the_answer_and_the_log_line(client, caplog, method, path, status):
    with caplog.at_level(logging.INFO, "service.access"):
        response = client.request(method, path, content=RED, headers={"Traceparent": GOOD})

    line: Any = caplog.records[-1]
    assert response.status_code == status
    assert response.headers["traceparent"] == f"00-{TRACE_ID}-{line.span_id}-01"
    assert line.trace_id == TRACE_ID


@pytest.mark.parametrize("headers", [{}, {"Traceparent": "00-evil"}])
def test_tracing_without_a_valid_header_adds_nothing(client, caplog, headers):
    with caplog.at_level(logging.INFO, "service.access"):
        response = client.get("/v1/models", headers=headers)

    assert "traceparent" not in response.headers
    assert not hasattr(caplog.records[-1], "trace_id")
