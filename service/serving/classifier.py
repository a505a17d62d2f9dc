"""The use case: pictures in, predictions or one error per picture out. Knows nothing of HTTP.

Every wire format is a thin adapter over `ActiveBackend.find` and `Classifier.classify`, so they all behave
alike.
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
    """Seconds that a request spent in each stage."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    rank_s: float = 0.0
    batch_size: int = 0

    def include(self, one: InferenceResult, rank_s: float) -> None:
        # Pictures run side by side, so the longest counts; they are ranked one after the other.
        self.decode_s = max(self.decode_s, one.decode_s)
        self.preprocess_s = max(self.preprocess_s, one.preprocess_s)
        self.queue_s = max(self.queue_s, one.queue_s)
        self.infer_s = max(self.infer_s, one.infer_s)
        self.rank_s += rank_s
        self.batch_size = max(self.batch_size, one.batch_size)


Outcome = list[Prediction] | ImageError | ServiceError


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request."""

    manifest: Manifest  # of the version that answered
    outcomes: list[Outcome]  # one per picture, in order
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version and the backend that runs it."""

    version: LoadedVersion
    backend: Backend


@dataclass(slots=True, eq=False)
class ActiveBackend:
    """The backend in use, and a count of its users: it is swapped while requests are running."""

    backend: Backend
    n_users: int = 0  # requests on this backend that are not answered yet
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def repository(self) -> Repository:
        return self.backend.repository

    @contextmanager
    def find(self, name: str | None = None, number: int | None = None) -> Iterator[ServedVersion]:
        """Finds a version and keeps its backend running for the time of a request.

        Args:
            name: of the model; None for the default model.
            number: of the version; None for the newest loaded one.

        Raises:
            ModelNotFound: the model or the version is not served.
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
        # Only ends after the swap: before it, requests keep coming.
        while self.n_users:
            self._released.clear()
            await self._released.wait()


class Classifier:
    """Classifies the pictures of requests with the active backend."""

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
            served: from `ActiveBackend.find`, inside its `with` block.
            images: whole image files; an error in place of a file becomes that picture's outcome.
            deadline_s: monotonic seconds; pictures unanswered by then get DeadlineExceeded.
            top_k: the most predictions per picture, 1..C; None for `DEFAULT_TOP_K`, or C if less.
            min_probability: less probable predictions are left out, 0..1.

        Raises:
            InvalidParameter: `top_k` is out of range.
        """
        manifest = served.version.manifest
        if top_k is not None and not 1 <= top_k <= manifest.n_classes:
            raise InvalidParameter(f"top_k: must be 1 to {manifest.n_classes} for this model")

        answer = Classification(manifest, [])

        async def classify_one(image: bytes | ServiceError) -> Outcome:
            if isinstance(image, ServiceError):
                return image
            result = await self._infer(served, image, deadline_s)
            if not isinstance(result, InferenceResult):
                return result

            started_s = self._clock()
            predictions = to_predictions(
                result.probabilities, manifest, top_k or DEFAULT_TOP_K, min_probability
            )
            answer.times.include(result, self._clock() - started_s)
            return predictions

        if len(images) == 1:  # a task would cost as much as ranking does
            answer.outcomes.append(await classify_one(images[0]))
        else:
            answer.outcomes.extend(await asyncio.gather(*map(classify_one, images)))
        return answer

    async def _infer(
        self, served: ServedVersion, image: bytes, deadline_s: float
    ) -> InferenceResult | ImageError | ServiceError:
        late = "the picture was not answered within the request's deadline"
        remaining_s = deadline_s - self._clock()
        if remaining_s <= 0:
            return DeadlineExceeded(late)

        try:
            async with asyncio.timeout(remaining_s):
                return await served.backend.answer(served.version, image, deadline_s)
        except TimeoutError:
            return DeadlineExceeded(late)
        except (ImageError, ServiceError) as error:
            return error
