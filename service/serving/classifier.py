"""The use case: pictures in, predictions or each picture's own error out. Knows nothing of HTTP.

Every wire format is a thin adapter on `ActiveBackend.find` and `Classifier.classify`, so that all of them
behave alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from contract.errors import ImageError
from contract.manifest import Manifest
from contract.predictions import Prediction, to_predictions
from service.errors import DeadlineExceeded, InvalidParameter, ServiceError
from service.models.repository import LoadedVersion, Repository
from service.serving.backend import Backend, InferenceResult

DEFAULT_TOP_K = 5


@dataclass(slots=True)
class StageTimes:
    """Seconds that a request spent in each stage; of several pictures the longest counts."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    rank_s: float = 0.0
    batch_size: int = 0

    def include(self, one: InferenceResult, rank_s: float) -> None:
        self.decode_s = max(self.decode_s, one.decode_s)
        self.preprocess_s = max(self.preprocess_s, one.preprocess_s)
        self.queue_s = max(self.queue_s, one.queue_s)
        self.infer_s = max(self.infer_s, one.infer_s)
        self.rank_s += rank_s
        self.batch_size = max(self.batch_size, one.batch_size)


Outcome = list[Prediction] | ImageError | ServiceError


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request.

    Attributes:
        manifest: of the version that answered.
        outcomes: for each picture, in order, its predictions or its own error.
        times: how long the stages took.
    """

    manifest: Manifest
    outcomes: list[Outcome]
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One version and what answers with it."""

    version: LoadedVersion
    backend: Backend

    def expected_s(self) -> float:
        """Returns how long a picture that came now would take; see `Backend.expected_s`."""
        return self.backend.expected_s(self.version)


@dataclass(slots=True, eq=False)
class ActiveBackend:
    """What answers with the versions being served; swapped as a whole.

    Attributes:
        answerer: answers with the versions of its repository.
        n_users: requests that were given a version of this set and are not answered yet.
    """

    backend: Backend
    n_users: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def repository(self) -> Repository:
        """The versions."""
        return self.backend.repository

    @contextmanager
    def find(self, name: str | None = None, number: int | None = None) -> Iterator[ServedVersion]:
        """Finds a version and keeps its answerer open for the time of a request.

        Args:
            name: of the model; None for the default one.
            number: of the version; None for the newest that is loaded.

        Raises:
            ModelNotFound: it is not served.
        """
        version = self.repository.get(name, number)
        self.n_users += 1
        try:
            yield ServedVersion(version, self.backend)
        finally:
            self.n_users -= 1
            if not self.n_users:
                self._released.set()

    async def unused(self) -> None:
        """Returns once nobody uses this set; it must have been swapped out before."""
        while self.n_users:
            self._released.clear()
            await self._released.wait()


class Classifier:
    """Has pictures answered and ranks what comes back.

    Attributes:
        serving: the versions and what answers for them.
    """

    def __init__(
        self, active: ActiveBackend, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.active = active
        self._clock = clock

    async def classify(
        self,
        served: ServedVersion,
        images: Sequence[bytes | ServiceError],
        deadline_s: float,
        *,
        top_k: int | None = None,
        min_probability: float = 0.0,
    ) -> Classification:
        """Classifies the pictures of one request.

        Args:
            served: as `ActiveBackend.find` gave it, and still held.
            images: whole image files; an error in place of one that could not even be read becomes
                that picture's outcome.
            deadline_s: on the clock; pictures unanswered by then get DeadlineExceeded.
            top_k: predictions at most, 1..C; None for `DEFAULT_TOP_K` or C if that is less.
            min_probability: less probable predictions are left out, 0..1.

        Raises:
            InvalidParameter: `top_k` is out of its range.
        """
        manifest = served.version.manifest
        if top_k is not None and not 1 <= top_k <= manifest.n_classes:
            raise InvalidParameter(f"top_k: must be 1 to {manifest.n_classes} for this model")
        answer = Classification(manifest, [])

        async def classify_one(image: bytes | ServiceError) -> Outcome:
            if isinstance(image, ServiceError):
                return image
            answered = await self._answered(served, image, deadline_s)
            if not isinstance(answered, InferenceResult):
                return answered
            started_s = self._clock()
            predictions = to_predictions(
                answered.probabilities, manifest, top_k or DEFAULT_TOP_K, min_probability
            )
            answer.times.include(answered, self._clock() - started_s)
            return predictions

        if len(images) == 1:  # a task would cost as much as ranking does
            answer.outcomes.append(await classify_one(images[0]))
        else:
            answer.outcomes.extend(await asyncio.gather(*map(classify_one, images)))
        return answer

    async def _answered(
        self, served: ServedVersion, image: bytes, deadline_s: float
    ) -> InferenceResult | ImageError | ServiceError:
        late = "the picture was not answered within the request's deadline"
        left_s = deadline_s - self._clock()
        if left_s <= 0:
            return DeadlineExceeded(late)
        try:
            async with asyncio.timeout(left_s):
                return await served.backend.answer(served.version, image, deadline_s)
        except TimeoutError:
            return DeadlineExceeded(late)
        except (ImageError, ServiceError) as error:
            return error
