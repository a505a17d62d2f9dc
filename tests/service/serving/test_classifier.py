from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.images.decoding import decode
from contract.predictions import TopK, top_k
from service.errors import (
    DeadlineExceeded,
    InvalidParameter,
    MalformedRequest,
    ModelNotFound,
    Overloaded,
    ServiceError,
)
from service.models.repository import (
    EngineConfig,
    LoadedVersion,
    Repository,
)
from service.models.selection import RepositoryConfig, load_repository
from service.serving.backend import Backend, InferenceResult
from service.serving.classifier import ActiveBackend, Classification, Classifier, StageTimes
from tests import tinymodel
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

RED, GREEN = tinymodel.picture("red"), tinymodel.picture("green")


class FakeBackend(Backend):
    """Answers with the mean colour, or as the test sets it."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.versions: list[tuple[str, int]] = []
        self.deadlines: list[float] = []
        self.peers: list[str] = []
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None

    @property
    def repository(self) -> Repository:
        return self._repository

    async def answer(
        self,
        version: LoadedVersion,
        image: bytes,
        deadline_s: float,
        wanted: TopK,
        peer: str = "",
    ) -> InferenceResult:
        colour = np.asarray(decode(image)).reshape(-1, 3).mean(axis=0)
        self.versions.append(version.key)
        self.deadlines.append(deadline_s)
        self.peers.append(peer)
        if self.held:
            await self.held.wait()
        if self.error:
            raise self.error
        row = np.array(tinymodel.expected(tuple(colour)), np.float32)
        ranking = top_k(row, wanted.k, wanted.min_probability)
        return InferenceResult(ranking, 0.5, 0.25, 1.0, 2.0, 0.125, 3)

    def expected_s(self, version: LoadedVersion, peer: str = "") -> float:  # noqa: ARG002
        return float(version.manifest.version)


@pytest.fixture
def backend(models_dir: Path) -> FakeBackend:
    """A backend with version 2 of `tiny`."""
    return FakeBackend(load_repository(RepositoryConfig(models_dir, EngineConfig("cpu"))))


@pytest.fixture
def classifier(backend: FakeBackend) -> Classifier:
    return Classifier(ActiveBackend(backend), clock=FakeClock())


NOW_S = FakeClock()()
LATER_S = NOW_S + 30


async def classify(
    classifier: Classifier,
    images: Sequence[bytes | ServiceError],
    deadline_s: float = LATER_S,
    top_k: int | None = None,
) -> Any:
    with classifier.active.find() as served:
        return await classifier.classify(served, images, deadline_s, top_k=top_k)


def labels_of(answer: Classification) -> list[str]:
    best = [outcome[0][0] for outcome in answer.outcomes if isinstance(outcome, list)]
    return [answer.manifest.labels[index].name for index in best]


async def test_classifier_answers_each_picture_in_order(classifier, backend):
    answer = await classify(classifier, [RED, GREEN])

    assert labels_of(answer) == ["red", "green"]
    assert answer.manifest.version == 2
    assert backend.versions == [("tiny", 2)] * 2
    assert backend.deadlines == [LATER_S, LATER_S]


async def test_classifier_tells_the_backend_whose_picture_it_is(classifier, backend):
    with classifier.active.find() as served:
        await classifier.classify(served, [RED], LATER_S, peer="10.0.0.1")

    assert backend.peers == ["10.0.0.1"]


async def test_classifier_picture_without_memory_fails_alone(classifier, backend):
    backend.error = MemoryError()

    answer = await classify(classifier, [RED])

    assert isinstance(answer.outcomes[0], Overloaded)
    assert answer.outcomes[0].reason == "memory"


async def test_classifier_times_are_those_of_the_slowest_picture(classifier):
    answer = await classify(classifier, [RED, GREEN])

    assert answer.times == StageTimes(0.5, 0.25, 1.0, 2.0, 0.125, 3)


def test_stage_times_keep_the_longest():
    times = StageTimes()

    times.include(InferenceResult([], 1.0, 9.0, 5.0, 1.0, 0.25, 2))
    times.include(InferenceResult([], 2.0, 8.0, 4.0, 3.0, 0.5, 1))

    assert times == StageTimes(2.0, 9.0, 5.0, 3.0, 0.5, 2)


async def test_classifier_bad_picture_fails_alone(classifier, backend):
    unread = MalformedRequest("unread")

    answer = await classify(classifier, [RED, b"x", unread, GREEN])

    codes = [getattr(outcome, "code", "ok") for outcome in answer.outcomes]
    assert codes == ["ok", "unsupported_media_type", "malformed_request", "ok"]
    assert len(backend.deadlines) == 2


@pytest.mark.parametrize("error", [Overloaded("full"), DeadlineExceeded("late")])
async def test_classifier_refusal_by_the_backend_is_the_outcome_of_the_picture(
    classifier, backend, error
):
    backend.error = error

    answer = await classify(classifier, [RED])

    assert answer.outcomes == [error]


async def test_classifier_unexpected_error_is_raised(classifier, backend):
    backend.error = KeyError("bug")

    with pytest.raises(KeyError):
        await classify(classifier, [RED])


async def test_classifier_past_deadline_answers_at_once(classifier, backend):
    answer = await classify(classifier, [RED], NOW_S - 1)

    assert [type(outcome) for outcome in answer.outcomes] == [DeadlineExceeded]
    assert backend.deadlines == []


@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (1, 1), (3, 3), (4, 3), (2**70, 3)])
async def test_classifier_top_k_limits_predictions(classifier, top_k, count):
    answer = await classify(classifier, [RED], top_k=top_k)

    assert len(answer.outcomes[0]) == count


@pytest.mark.parametrize("top_k", [-1, 0])
async def test_classifier_top_k_below_one_refused(classifier, top_k):
    with pytest.raises(InvalidParameter, match="at least 1"):
        await classify(classifier, [RED], top_k=top_k)


def test_active_backend_finds_the_version_and_its_backend(classifier, backend):
    with classifier.active.find("tiny", 2) as served:
        assert (served.version.key, served.backend) == (("tiny", 2), backend)


@pytest.mark.parametrize("name_and_version", [("none", None), ("tiny", 1), (None, 7)])
def test_active_backend_unknown_version_refused(classifier, name_and_version):
    with pytest.raises(ModelNotFound), classifier.active.find(*name_and_version):
        pass

    assert classifier.active.n_users == 0


async def test_active_backend_is_unused_once_the_last_request_has_ended(classifier):
    active = classifier.active
    with active.find(), active.find():
        unused = asyncio.create_task(active.wait_unused())
        await asyncio.sleep(0)
        assert not unused.done()

    await unused


async def test_classifier_answers_with_the_version_found_even_if_the_backend_is_replaced(
    classifier, backend
):
    before = classifier.active
    with before.find() as served:
        successor = FakeBackend(before.repository)
        classifier.active = ActiveBackend(successor)
        answer = await classifier.classify(served, [RED], LATER_S)

    assert (len(answer.outcomes), backend.deadlines) == (1, [LATER_S])
    assert successor.deadlines == []
