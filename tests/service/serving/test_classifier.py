from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.images.decoding import decode
from service.errors import (
    DeadlineExceeded,
    InvalidParameter,
    MalformedRequest,
    ModelNotFound,
    Overloaded,
    ServiceError,
)
from service.models.repository import (
    LoadedVersion,
    Repository,
    RunPlan,
    Shelf,
    load_repository,
)
from service.serving.backend import Answered, Answerer
from service.serving.classifier import Classifier, Serving, StageTimes
from tests import tinymodel
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

RED, GREEN = tinymodel.picture("red"), tinymodel.picture("green")


class FakeAnswerer(Answerer):
    """Answers with the mean colour, or as told."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.versions: list[tuple[str, int]] = []
        self.deadlines: list[float] = []
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None

    @property
    def repository(self) -> Repository:
        return self._repository

    async def answer(self, version: LoadedVersion, image: bytes, deadline_s: float) -> Answered:
        colour = np.asarray(decode(image)).reshape(-1, 3).mean(axis=0)
        self.versions.append(version.key)
        self.deadlines.append(deadline_s)
        if self.held:
            await self.held.wait()
        if self.error:
            raise self.error
        row = np.array(tinymodel.expected(tuple(colour)), np.float32)
        return Answered(row, 0.5, 0.25, 1.0, 2.0, 3)

    def expected_s(self, version: LoadedVersion) -> float:
        return float(version.manifest.version)


@pytest.fixture
def answerer(models_dir: Path) -> FakeAnswerer:
    """Has the version 2 of `tiny`."""
    return FakeAnswerer(load_repository(Shelf(models_dir, RunPlan("cpu"))))


@pytest.fixture
def classifier(answerer: FakeAnswerer) -> Classifier:
    return Classifier(Serving(answerer), clock=FakeClock())


NOW_S = FakeClock()()
LATER_S = NOW_S + 30


async def classify(
    classifier: Classifier,
    images: Sequence[bytes | ServiceError],
    deadline_s: float = LATER_S,
    top_k: int | None = None,
) -> Any:
    with classifier.serving.find() as served:
        return await classifier.classify(served, images, deadline_s, top_k=top_k)


async def test_classifier_answers_each_picture_in_order(classifier, answerer):
    answer = await classify(classifier, [RED, GREEN])

    assert [outcome[0].label for outcome in answer.outcomes] == ["red", "green"]
    assert answer.manifest.version == 2
    assert answerer.versions == [("tiny", 2)] * 2
    assert answerer.deadlines == [LATER_S, LATER_S]


async def test_classifier_times_are_those_of_the_slowest_picture(classifier):
    answer = await classify(classifier, [RED, GREEN])

    assert answer.times == StageTimes(0.5, 0.25, 1.0, 2.0, 0.0, 3)


def test_stage_times_keep_the_longest():
    times = StageTimes()
    row = np.zeros(1, np.float32)

    times.include(Answered(row, 1.0, 9.0, 5.0, 1.0, 2), 0.25)
    times.include(Answered(row, 2.0, 8.0, 4.0, 3.0, 1), 0.5)

    assert times == StageTimes(2.0, 9.0, 5.0, 3.0, 0.75, 2)


async def test_classifier_bad_picture_fails_alone(classifier, answerer):
    unread = MalformedRequest("unread")

    answer = await classify(classifier, [RED, b"x", unread, GREEN])

    codes = [getattr(outcome, "code", "ok") for outcome in answer.outcomes]
    assert codes == ["ok", "unsupported_media_type", "malformed_request", "ok"]
    assert len(answerer.deadlines) == 2


@pytest.mark.parametrize("error", [Overloaded("full"), DeadlineExceeded("late")])
async def test_classifier_refusal_of_the_answerer_is_the_pictures_outcome(
    classifier, answerer, error
):
    answerer.error = error

    answer = await classify(classifier, [RED])

    assert answer.outcomes == [error]


async def test_classifier_unexpected_error_is_raised(classifier, answerer):
    answerer.error = KeyError("bug")

    with pytest.raises(KeyError):
        await classify(classifier, [RED])


async def test_classifier_deadline_ends_the_wait(classifier, answerer):
    answerer.held = asyncio.Event()

    answer = await classify(classifier, [RED], NOW_S + 0.2)

    assert [type(outcome) for outcome in answer.outcomes] == [DeadlineExceeded]


async def test_classifier_past_deadline_answers_at_once(classifier, answerer):
    answer = await classify(classifier, [RED], NOW_S - 1)

    assert [type(outcome) for outcome in answer.outcomes] == [DeadlineExceeded]
    assert answerer.deadlines == []


@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (1, 1), (3, 3)])
async def test_classifier_top_k_limits_predictions(classifier, top_k, count):
    answer = await classify(classifier, [RED], top_k=top_k)

    assert len(answer.outcomes[0]) == count


@pytest.mark.parametrize("top_k", [-1, 0, 4])
async def test_classifier_top_k_beyond_the_classes_refused(classifier, top_k):
    with pytest.raises(InvalidParameter, match="1 to 3"):
        await classify(classifier, [RED], top_k=top_k)


def test_serving_finds_the_version_and_what_answers_for_it(classifier, answerer):
    with classifier.serving.find("tiny", 2) as served:
        assert (served.version.key, served.answerer) == (("tiny", 2), answerer)
        assert served.expected_s() == 2.0


@pytest.mark.parametrize("wanted", [("none", None), ("tiny", 1), (None, 7)])
def test_serving_unknown_version_refused(classifier, wanted):
    with pytest.raises(ModelNotFound), classifier.serving.find(*wanted):
        pass

    assert classifier.serving.n_users == 0


async def test_serving_is_unused_once_the_last_request_has_ended(classifier):
    serving = classifier.serving
    with serving.find(), serving.find():
        unused = asyncio.create_task(serving.unused())
        await asyncio.sleep(0)
        assert not unused.done()

    await unused


async def test_classifier_answers_with_the_version_that_was_found_whatever_is_adopted(
    classifier, answerer
):
    before = classifier.serving
    with before.find() as served:
        successor = FakeAnswerer(before.repository)
        classifier.serving = Serving(successor)
        answer = await classifier.classify(served, [RED], LATER_S)

    assert (len(answer.outcomes), answerer.deadlines) == (1, [LATER_S])
    assert successor.deadlines == []
