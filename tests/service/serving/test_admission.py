from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import work
from service.errors import Draining, Overloaded
from service.serving.admission import Admission, Slot
from tests import tinymodel
from tests.fakes import FakeClock
from tests.problems import assert_problem
from tests.service.running import batcher_of, lose_lanes

RED = tinymodel.picture("red")
CLASSIFY = "/v1/classify"
SECONDS = st.floats(0, 1e6)


def new_admission(max_images: int = 4, max_bytes: int = 100) -> tuple[Admission, FakeClock]:
    clock = FakeClock()
    return Admission(max_images=max_images, max_bytes=max_bytes, clock=clock), clock


def test_admission_slot_is_released_at_the_end():
    admission, _ = new_admission()

    with admission.slot() as slot:
        slot.add_images(3)
        slot.add_bytes(60)
        slot.add_bytes(40)
        held = (admission.images, admission.n_bytes)

    assert (held, admission.images, admission.n_bytes) == ((3, 100), 0, 0)


def test_admission_slot_that_fails_is_released():
    admission, _ = new_admission()

    def fail() -> None:
        with admission.slot() as slot:
            slot.add_images(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert admission.images == 0


@pytest.mark.parametrize(("images", "n_bytes"), [(5, 0), (0, 101)], ids=["images", "bytes"])
def test_admission_beyond_a_limit_refused_and_not_counted(images, n_bytes):
    admission, _ = new_admission()

    with admission.slot() as slot, pytest.raises(Overloaded, match="the limit is"):
        slot.add_images(images) if images else slot.add_bytes(n_bytes)

    assert (admission.images, admission.n_bytes) == (0, 0)


def test_admission_full_refuses_before_the_body_is_read():
    admission, _ = new_admission(max_images=1)

    with admission.slot() as slot:
        slot.add_images(1)
        with pytest.raises(Overloaded), admission.slot():
            pass

    with admission.slot() as slot:
        slot.add_images(1)


def test_admission_slot_without_pictures_takes_no_place():
    admission, _ = new_admission(max_images=1)

    with admission.slot(), admission.slot() as second:
        second.add_images(1)

        assert admission.images == 1


def test_admission_closed_refuses_new_work():
    admission, _ = new_admission()
    admission.closed = True

    with pytest.raises(Draining), admission.slot():
        pass


@pytest.mark.parametrize(
    ("n_ended", "seconds", "in_flight", "expected"),
    [(0, 0, 4, 1), (1, 1, 4, 1), (2, 0, 4, 1), (10, 1, 4, 4), (10, 0.01, 4, 1), (4, 100, 4, 60)],
    ids=["none_ended", "one_ended", "no_time", "one_per_second", "fast", "hours"],
)
def test_admission_retry_after_follows_the_rate(n_ended, seconds, in_flight, expected):
    """The rate is that of `n_ended` requests of one picture each, which ended `seconds` apart."""
    admission, clock = new_admission()
    for _ in range(n_ended):
        with admission.slot() as slot:
            slot.add_images(1)
        clock.advance(seconds)

    with admission.slot() as slot:
        slot.add_images(in_flight)

        assert admission.retry_after_s() == expected


# Clients share the limits


def hold(admission: Admission, peer: str, images: int = 0, n_bytes: int = 0) -> Slot:
    slot = admission.slot(peer)
    slot.__enter__()
    slot.add_images(images)
    slot.add_bytes(n_bytes)
    return slot


def test_admission_client_that_is_alone_may_use_all_of_a_limit():
    admission, _ = new_admission(max_images=16)

    for _ in range(16):
        hold(admission, "a", images=1)

    assert admission.images == 16


@pytest.mark.parametrize("kind", ["images", "n_bytes"])
def test_admission_client_with_most_in_flight_is_refused_first(kind):
    admission, _ = new_admission(max_images=16, max_bytes=16)
    hold(admission, "b", **{kind: 1})
    for _ in range(13):
        hold(admission, "a", **{kind: 1})

    with pytest.raises(Overloaded, match="its share"):
        hold(admission, "a", **{kind: 1})

    hold(admission, "b", **{kind: 1})
    hold(admission, "c", **{kind: 1})
    assert getattr(admission, "images" if kind == "images" else "n_bytes") == 16


def test_admission_client_below_its_share_may_take_the_last_places():
    admission, _ = new_admission(max_images=16)
    for peer, images in (("a", 7), ("b", 7)):
        hold(admission, peer, images=images)

    hold(admission, "a", images=1)
    with pytest.raises(Overloaded, match="its share"):
        hold(admission, "a", images=1)
    hold(admission, "b", images=1)

    assert admission.images == 16


def test_admission_only_request_of_a_client_may_exceed_its_share():
    admission, _ = new_admission(max_images=16)
    hold(admission, "a", images=4)

    hold(admission, "b", images=12)

    assert admission.images == 16


def test_admission_freed_places_go_to_the_others():
    admission, _ = new_admission(max_images=16)
    held = [hold(admission, "a", images=1) for _ in range(16)]
    with pytest.raises(Overloaded, match="the limit is"):
        hold(admission, "b", images=1)

    held.pop().__exit__()
    with pytest.raises(Overloaded, match="its share"):
        hold(admission, "a", images=1)

    hold(admission, "b", images=1)


def test_admission_client_that_stays_away_shares_no_longer():
    admission, clock = new_admission(max_images=16)
    hold(admission, "b", images=1).__exit__()
    hold(admission, "a", images=14)
    clock.advance(10)
    with pytest.raises(Overloaded, match="its share"):  # "b" may come back
        hold(admission, "a", images=1)
    clock.advance(600)

    hold(admission, "a", images=2)

    assert (admission.images, len(admission._usage)) == (16, 1)


def test_admission_client_that_comes_back_finds_a_place():
    admission, clock = new_admission(max_images=16)
    hold(admission, "b", images=1).__exit__()
    clock.advance(300)
    with suppress(Overloaded):
        while True:
            hold(admission, "a", images=1)

    hold(admission, "b", images=2)

    assert admission.images == 16


def test_admission_rate_counts_the_last_requests_only():
    admission, clock = new_admission()
    for _ in range(500):
        with admission.slot() as slot:
            slot.add_images(2)
        clock.advance(1)

    assert admission._n_finished == sum(images for _, images in admission._finished) == 2 * 64


def test_admission_forgets_clients_but_not_those_with_requests():
    admission, clock = new_admission(max_images=100)
    busy = hold(admission, "busy", images=1)
    for index in range(100):
        with admission.slot(str(index)):
            pass
    clock.advance(10)

    for _ in range(200):
        with admission.slot("a"):
            pass

    assert set(admission._usage) == {"busy", "a"}
    assert busy.usage.images == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 5)), max_size=60))
def test_admission_counts_are_the_sums_of_the_clients(steps):
    """A number below 0 ends the client's oldest request."""
    admission, clock = new_admission(max_images=16)
    held: dict[str, list[Slot]] = {"a": [], "b": [], "c": []}

    for peer, images in steps:
        clock.advance(3)
        if images >= 0:
            with suppress(Overloaded):
                held[peer].append(hold(admission, peer, images=images))
        elif held[peer]:
            held[peer].pop(0).__exit__()

        for peer in held:  # the short way refuses exactly what the long one does
            refusal = admission.refusal(peer)
            assert admission.refusal(peer) is refusal
            assert admission.crowded or refusal is None
            if refusal is None:
                admission.slot(peer)
            else:
                with pytest.raises(Overloaded, match=f"^{re.escape(str(refusal))}$"):
                    admission.slot(peer)

    counted = {peer: sum(slot.images for slot in slots) for peer, slots in held.items()}
    assert admission.images == sum(counted.values()) <= 16
    assert {peer: one.images for peer, one in admission._usage.items() if one.images} == {
        peer: images for peer, images in counted.items() if images
    }


# Requests that would miss their deadline


@given(SECONDS, SECONDS)
def test_admission_refuses_exactly_the_requests_expected_to_be_late(expected_s, remaining_s):
    refused = False

    try:
        new_admission()[0].check_wait(expected_s, remaining_s)
    except Overloaded:
        refused = True

    assert refused == (1.2 * expected_s > remaining_s)


@given(SECONDS.filter(bool), st.floats(-1e6, 0))
def test_admission_late_refusal_has_a_reason_and_a_time_to_retry(expected_s, remaining_s):
    with pytest.raises(Overloaded) as caught:
        new_admission()[0].check_wait(expected_s, remaining_s)

    assert 1 <= caught.value.retry_after_s <= 60
    assert caught.value.reason == "deadline"


@pytest.mark.parametrize(
    ("expected_s", "remaining_s", "retry_after_s"),
    [(0.01, 0.001, 1), (10, 10, 2), (10, 2, 10), (1e5, 1, 60)],
    ids=["hardly", "safety_factor", "backlog", "hours"],
)
def test_admission_late_refusal_retry_after_is_the_excess_wait(
    expected_s, remaining_s, retry_after_s
):
    with pytest.raises(Overloaded) as caught:
        new_admission()[0].check_wait(expected_s, remaining_s)

    assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize("remaining_s", [-1, 0, 1e-9], ids=["passed", "now", "soon"])
def test_admission_without_an_estimate_refuses_nothing(remaining_s):
    admission, _ = new_admission()
    before = (admission.images, admission.n_bytes)

    admission.check_wait(0.0, remaining_s)

    assert (admission.images, admission.n_bytes) == before


def test_admission_late_refusal_takes_no_place():
    admission, _ = new_admission()

    with pytest.raises(Overloaded):
        admission.check_wait(10, 1)

    assert (admission.images, admission.n_bytes) == (0, 0)


# Metrics of refusals


def fill_pictures(client):
    client.app.state.dependencies.admission.images = 256


def fill_bytes(client):
    client.app.state.dependencies.admission.n_bytes = 268_435_456


def close(client):
    client.app.state.dependencies.admission.closed = True


def slow_down(client):
    queue_of(client).n_pending = 1
    queue_of(client).times.item_s = 100.0


def fill_queue(client):
    queue_of(client).n_pending = 256


def queue_of(client):
    return batcher_of(client)._queue_of(client.app.state.service.repository.get())


def refusals(client) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["code"], sample.labels["reason"]): sample.value
        for metric in client.app.state.service.metrics.refused.collect()
        for sample in metric.samples
        if sample.value
    }


REFUSALS = {
    "images": (fill_pictures, "overloaded", "images"),
    "bytes": (fill_bytes, "overloaded", "bytes"),
    "deadline": (slow_down, "overloaded", "deadline"),
    "queue": (fill_queue, "overloaded", "queue"),
    "closed": (close, "draining", "draining"),
    "dead": (lose_lanes, "model_not_ready", "model_not_ready"),
}


@pytest.mark.parametrize(("cause", "code", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_admission_refusal_counted_by_its_reason(fresh_client, cause, code, reason):
    cause(fresh_client)

    response = fresh_client.post(CLASSIFY, content=RED)

    assert_problem(response, 503, code)
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert refusals(fresh_client) == {(code, reason): 1}


def test_admission_refusal_counted_with_reason_memory(fresh_client, monkeypatch):
    def decode(*_args):
        raise MemoryError

    monkeypatch.setattr(work, "decode_file", decode)

    response = fresh_client.post(CLASSIFY, content=RED)

    assert_problem(response, 503, "overloaded")
    assert refusals(fresh_client) == {("overloaded", "memory"): 1}


def test_admission_passed_deadline_counted_with_reason_deadline(make_client):
    client = make_client(request_timeout_s=1e-9)

    client.post(CLASSIFY, content=RED)

    assert refusals(client) == {("deadline_exceeded", "deadline"): 1}


def test_admission_slow_model_still_accepts_distant_deadlines(fresh_client):
    slow_down(fresh_client)

    response = fresh_client.post(CLASSIFY, content=RED, headers={"x-request-timeout-ms": "300000"})

    assert response.status_code == 200


def test_admission_idle_service_recovers_from_a_slow_run(fresh_client):
    """A single slow run, for example on a paused machine, must not cause refusals from then on.

    This holds even while pictures for other models are always in flight.
    """
    fresh_client.app.state.dependencies.admission.images = 1
    times = queue_of(fresh_client).times
    times.item_s = 100.0

    statuses = [fresh_client.post(CLASSIFY, content=RED).status_code for _ in range(30)]

    assert statuses == [200] * 30
    assert times.item_s < 10
