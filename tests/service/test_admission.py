from __future__ import annotations

import pytest

from service.admission import Admission
from service.errors import Draining, Overloaded
from tests.fakes import FakeClock


def door(max_images: int = 4, max_bytes: int = 100) -> tuple[Admission, FakeClock]:
    clock = FakeClock()
    return Admission(max_images=max_images, max_bytes=max_bytes, clock=clock), clock


def test_admission_slot_gives_back_what_it_held():
    admission, _ = door()

    with admission.slot() as slot:
        slot.add_images(3)
        slot.add_bytes(60)
        slot.add_bytes(40)
        held = (admission.images, admission.n_bytes)

    assert (held, admission.images, admission.n_bytes) == ((3, 100), 0, 0)


def test_admission_slot_that_fails_gives_back_what_it_held():
    admission, _ = door()

    def fail() -> None:
        with admission.slot() as slot:
            slot.add_images(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert admission.images == 0


@pytest.mark.parametrize(("images", "n_bytes"), [(5, 0), (0, 101)], ids=["images", "bytes"])
def test_admission_beyond_a_bound_refused_and_not_counted(images, n_bytes):
    admission, _ = door()

    with admission.slot() as slot, pytest.raises(Overloaded, match="the limit is"):
        slot.add_images(images) if images else slot.add_bytes(n_bytes)

    assert (admission.images, admission.n_bytes) == (0, 0)


def test_admission_full_refuses_at_the_door():
    admission, _ = door(max_images=1)

    with admission.slot() as slot:
        slot.add_images(1)
        with pytest.raises(Overloaded), admission.slot():
            pass

    with admission.slot() as slot:
        slot.add_images(1)


def test_admission_slot_without_pictures_holds_no_place():
    admission, _ = door(max_images=1)

    with admission.slot(), admission.slot() as second:
        second.add_images(1)

        assert admission.images == 1


def test_admission_closed_refuses_new_work():
    admission, _ = door()
    admission.closed = True

    with pytest.raises(Draining), admission.slot():
        pass


@pytest.mark.parametrize(
    ("departures", "seconds", "in_flight", "expected"),
    [(0, 0, 4, 1), (1, 1, 4, 1), (2, 0, 4, 1), (10, 1, 4, 4), (10, 0.01, 4, 1), (4, 100, 4, 60)],
    ids=["none_left", "one_left", "no_time", "one_a_second", "fast", "hours"],
)
def test_admission_retry_after_follows_the_rate(departures, seconds, in_flight, expected):
    """`departures` requests of one picture each left `seconds` apart."""
    admission, clock = door()
    for _ in range(departures):
        with admission.slot() as slot:
            slot.add_images(1)
        clock.advance(seconds)

    with admission.slot() as slot:
        slot.add_images(in_flight)

        assert admission.retry_after_s() == expected
