from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import Overloaded
from service.http.edge import EdgeMiddleware
from service.http.shedding import LoadShedder, PacedRefusals, Refusal
from service.system.metrics import LabelValues, Metrics
from tests.fakes import FakeClock
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def never() -> Any:
    raise AssertionError("nothing may be received while a refusal waits")


async def turn() -> None:
    await asyncio.sleep(0)


ONE_MORE_S = 0.001001  # the time in which one more refusal may go out


class Refused:
    """Refusals that wait; `sent` has the clients of those that may go out, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.clock = FakeClock()
        self._refusals = PacedRefusals(self.clock)
        self._later: list[tuple[float, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda *call: self._later.append(call))

    def refuse(self, name: str, *headers: tuple[bytes, bytes]) -> None:
        """A refusal for the client named by the first letter."""
        self._tasks.append(asyncio.create_task(self._wait(name, {"headers": headers})))

    async def _wait(self, name: str, scope: dict[str, Any]) -> None:
        await self._refusals.wait(name[0], scope, never)
        self.sent.append(name)

    def call(self, name: str, *, is_gone: bool = False) -> None:
        """A refusal without a request that waits."""
        self._refusals.call(
            name[0], {"headers": []}, lambda: self.sent.append(name), lambda: is_gone
        )

    async def advance(self, seconds: float) -> list[str]:
        """Lets time pass, and returns all that have been sent since the last call."""
        self.clock.advance(seconds)
        before = len(self.sent)
        for _ in range(20):
            due, self._later = self._later, []
            for _, begin in due:
                begin()
            await turn()
        return self.sent[before:]

    async def use_the_burst(self) -> None:
        for _ in range(100):
            self.refuse("burst")
        assert len(await self.advance(0)) == 100


def length(n_bytes: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % n_bytes


async def test_refusals_go_out_at_a_rate_in_turn_by_client(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for name in ("a0", "a1", "a2", "b0"):
        refused.refuse(name)

    assert await refused.advance(0) == []
    assert [await refused.advance(ONE_MORE_S) for _ in range(4)] == [["a0"], ["b0"], ["a1"], ["a2"]]


async def test_refusals_of_requests_with_large_bodies_wait_longer(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.refuse("a0", length(4 * 65_536))  # costs as much as three small ones
    refused.refuse("a1")

    assert await refused.advance(ONE_MORE_S) == ["a0"]
    assert await refused.advance(2 * ONE_MORE_S) == []
    assert await refused.advance(ONE_MORE_S) == ["a1"]


async def test_refusals_go_out_at_once_for_a_while_when_too_many_wait(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for index in range(256):
        refused.refuse(f"a{index}")
    waiting = await refused.advance(0)

    refused.refuse("b0")
    at_once = await refused.advance(0)
    await refused.advance(29)
    refused.refuse("c0")
    still_at_once = await refused.advance(0)

    assert waiting == []
    assert at_once == ["b0"]
    assert still_at_once == ["c0"]


async def test_refusals_wait_again_after_a_while(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for index in range(257):
        refused.refuse(f"a{index}")
    for _ in range(40):
        await refused.advance(1)
    await refused.use_the_burst()

    refused.refuse("b0")

    assert await refused.advance(0) == []
    assert await refused.advance(ONE_MORE_S) == ["b0"]


async def test_refusals_announced_length_delays_others_for_a_moment_only(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.refuse("a0", length(10**18))
    refused.refuse("b0")

    assert await refused.advance(ONE_MORE_S) == ["a0"]
    assert await refused.advance(0.5) == ["b0"]


@pytest.mark.parametrize("value", [b"", b"-1", b"1e9", "\u00b2".encode(), b"x"])
async def test_refusals_body_length_that_is_no_number_costs_nothing(monkeypatch, value):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.refuse("a0", (b"content-length", value))
    refused.refuse("a1")

    assert await refused.advance(ONE_MORE_S) == ["a0"]
    assert await refused.advance(ONE_MORE_S) == ["a1"]


async def test_refusals_that_are_called_wait_like_those_of_requests(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.call("a0")
    refused.call("gone", is_gone=True)
    refused.refuse("b0")

    assert await refused.advance(0) == []
    assert [await refused.advance(ONE_MORE_S) for _ in range(3)] == [["a0"], ["b0"], []]


FULL = Overloaded("256 pictures are in flight, the limit is 256", 3, reason="images")
ROUTE = "/v1/classify"


class Shedding:
    """A shedder of a service that is full."""

    def __init__(self, error: Overloaded | None = FULL) -> None:
        self.clock = FakeClock()
        self.asked: list[str] = []
        self.error = error
        self.metrics = Metrics(
            LabelValues(error_codes=("overloaded",), refusals=(("overloaded", "images"),))
        )
        self.metrics.add_routes({ROUTE: {503, 499}})
        self.shedder = LoadShedder(
            lambda scope: ROUTE if scope["path"] == ROUTE else None,
            self.refusal_of,
            self.metrics,
            PacedRefusals(),
            self.clock,
        )

    def refusal_of(self, client: str) -> Overloaded | None:
        self.asked.append(client)
        return self.error

    def refuse(self, *headers: tuple[bytes, bytes], client: str = "10.0.0.1") -> Refusal | None:
        scope = {"path": ROUTE, "client": (client, 1), "headers": list(headers)}
        return self.shedder.refuse(scope)

    def use_those_in_full(self) -> None:
        while self.refuse() is None:
            pass

    def refused(self, *headers: tuple[bytes, bytes], client: str = "10.0.0.1") -> Refusal:
        found = self.refuse(*headers, client=client)
        assert found is not None
        return found

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics._registry.get_sample_value(f"convserve_{name}", labels)


def parse(response: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines)
    return int(status.split()[1]), fields, json.loads(body)


async def test_shedder_response_is_that_of_the_edge():
    async def full(*_: object) -> None:
        raise FULL

    sent = {"X-Request-Id": "mine", "Traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    expected = TestClient(EdgeMiddleware(full, Metrics(), draining=lambda: False)).post(
        ROUTE, headers=sent
    )
    shedding = Shedding()
    shedding.use_those_in_full()
    refusal = shedding.refused(*((k.lower().encode(), v.encode()) for k, v in sent.items()))

    status, fields, document = parse(refusal.response([(b"date", b"today")]))

    assert fields.pop("date") == "today"
    assert (status, document) == (expected.status_code, expected.json())
    assert fields.keys() == expected.headers.keys()
    differ = {name for name in fields if fields[name] != expected.headers[name]}
    assert differ <= {"server-timing", "traceparent"}
    assert fields["traceparent"].split("-")[1] == "a" * 32
    assert fields["server-timing"].startswith("total;dur=")


@pytest.mark.parametrize(
    ("given", "kept"), [(b"a", True), (b"x" * 64, True), (b"no spaces", False), (b"", False)]
)
async def test_shedder_response_has_the_id_of_the_client_if_it_is_safe(given, kept):
    shedding = Shedding()
    shedding.use_those_in_full()

    response = shedding.refused((b"x-request-id", given)).response([])

    _, fields, document = parse(response)
    assert document["request_id"] == fields["x-request-id"]
    assert (fields["x-request-id"] == given.decode()) == kept
    body = response.partition(b"\r\n\r\n")[2]
    assert int(fields["content-length"]) == len(body)


async def test_shedder_response_of_the_last_request_says_that_the_connection_closes():
    shedding = Shedding()
    shedding.use_those_in_full()
    refusal = shedding.refused()
    refusal.keep_alive = False

    assert parse(refusal.response([]))[1]["connection"] == "close"


async def test_shedder_lets_a_few_refusals_go_on_every_second():
    shedding = Shedding()
    at_first = [shedding.refuse() is None for _ in range(12)]
    shedding.clock.advance(0.1)
    later = [shedding.refuse() is None for _ in range(2)]

    assert at_first == [True] * 10 + [False] * 2
    assert later == [True, False]


async def test_shedder_lets_other_requests_and_those_with_room_go_on():
    shedding = Shedding()
    shedding.use_those_in_full()

    other = shedding.shedder.refuse({"path": "/livez", "client": ("10.0.0.1", 1), "headers": []})
    shedding.error = None
    with_room = shedding.refuse(client="10.0.0.2")

    assert (other, with_room) == (None, None)
    assert shedding.asked[-1] == "10.0.0.2"


async def test_shedder_counts_what_was_sent(caplog):
    caplog.set_level(logging.INFO, "service.access")
    shedding = Shedding()
    shedding.use_those_in_full()
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        shedding.refused(client=client).response([])
    shedding.refused()  # not sent
    before = shedding.sample("requests_total", route=ROUTE, status="503")

    shedding.shedder.report()

    assert before == 0
    assert shedding.sample("requests_total", route=ROUTE, status="503") == 3
    assert shedding.sample("request_seconds_count", route=ROUTE) == 3
    assert shedding.sample("request_errors_total", code="overloaded") == 3
    assert shedding.sample("refused_total", code="overloaded", reason="images") == 3
    (line,) = caplog.records
    assert (line.getMessage(), line.count, line.n_clients) == ("requests refused", 3, 2)
    assert line.clients == {"10.0.0.1": 2, "10.0.0.2": 1}


async def test_shedder_logs_once_a_second_and_at_the_end(caplog):
    caplog.set_level(logging.INFO, "service.access")
    shedding = Shedding()
    shedding.use_those_in_full()
    counts = []
    for seconds, last in ((0.0, False), (0.5, False), (0.6, False), (0.1, False), (0.1, True)):
        shedding.clock.advance(seconds)
        shedding.use_those_in_full()
        shedding.refused().response([])
        shedding.shedder.report(last=last)
        counts.append([line.count for line in caplog.records])

    assert counts == [[1], [1], [1, 2], [1, 2], [1, 2, 2]]


async def test_shedder_reports_by_itself():
    shedding = Shedding()
    shedding.use_those_in_full()
    shedding.refused().response([])

    await until(lambda: shedding.sample("requests_total", route=ROUTE, status="503"))

    assert shedding.sample("requests_total", route=ROUTE, status="503") == 1


async def test_shedder_line_names_the_clients_with_most_refusals(caplog):
    caplog.set_level(logging.INFO, "service.access")
    shedding = Shedding()
    shedding.use_those_in_full()
    for index in range(20):
        for _ in range(2 if index == 17 else 1):
            shedding.refused(client=f"10.0.0.{index}").response([])

    shedding.shedder.report()

    (line,) = caplog.records
    assert (line.count, line.n_clients, len(line.clients)) == (21, 20, 10)
    assert line.clients["10.0.0.17"] == 2


async def test_shedder_counts_a_client_that_left_as_such():
    shedding = Shedding()
    shedding.use_those_in_full()

    shedding.refused().abandon()

    assert shedding.sample("requests_total", route=ROUTE, status="499") == 1
