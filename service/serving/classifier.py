"""The use case: pictures in, predictions or one error per picture out. Knows nothing of HTTP.

Every wire format is a thin adapter over `ActiveBackend.find` and `Classifier.classify`, so they all behave
alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from contract.errors import ImageError
from contract.manifest import Manifest
from contract.predictions import Ranking, TopK, default_top_k
from service.errors import DeadlineExceeded, InvalidParameter, Overloaded, ServiceError
from service.models.repository import LoadedVersion, Repository
from service.serving.backend import Backend, InferenceResult


@dataclass(slots=True)
class StageTimes:
    """Seconds that a request spent in each stage."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    rank_s: float = 0.0
    batch_size: int = 0

    def include(self, one: InferenceResult) -> None:
        # Pictures run side by side, so the longest counts.
        self.decode_s = max(self.decode_s, one.decode_s)
        self.preprocess_s = max(self.preprocess_s, one.preprocess_s)
        self.queue_s = max(self.queue_s, one.queue_s)
        self.infer_s = max(self.infer_s, one.infer_s)
        self.rank_s = max(self.rank_s, one.rank_s)
        self.batch_size = max(self.batch_size, one.batch_size)


Outcome = Ranking | ImageError | ServiceError


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request."""

    manifest: Manifest  # of the version that answered
    outcomes: list[Outcome]  # one per picture, in order
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version and the backend that runs it, which stays until the `with` block ends."""

    version: LoadedVersion
    backend: Backend
    active: ActiveBackend

    def __enter__(self) -> Self:
        self.active.n_users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.active.release()


@dataclass(slots=True, eq=False)
class ActiveBackend:
    """The backend in use, and a count of its users: it is swapped while requests are running."""

    backend: Backend
    n_users: int = 0  # requests on this backend that are not answered yet
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def repository(self) -> Repository:
        return self.backend.repository

    def find(self, name: str | None = None, version: int | str | None = None) -> ServedVersion:
        """Finds a version; a `with` block keeps its backend running for the time of a request.

        Args:
            name: of the model; None for the default model.
            version: its number or an alias; None for the version that answers.

        Raises:
            ModelNotFound: the model or the version is not served.
            ModelNotReady: the model has no version that can answer.
        """
        return ServedVersion(self.repository.get(name, version), self.backend, self)

    def release(self) -> None:
        self.n_users -= 1
        if not self.n_users:
            self._unused.set()

    async def wait_unused(self) -> None:
        # Only ends after the swap: before it, requests keep coming.
        while self.n_users:
            self._unused.clear()
            await self._unused.wait()


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
        peer: str = "",
    ) -> Classification:
        """Classifies the pictures of one request.

        Args:
            served: from `ActiveBackend.find`, inside its `with` block.
            images: whole image files; an error in place of a file becomes that picture's outcome.
            deadline_s: monotonic seconds; pictures unanswered by then get DeadlineExceeded.
            top_k: the most predictions per picture, from 1; values above C mean C. None for
                `default_top_k`.
            min_probability: less probable predictions are left out, 0..1.
            peer: the client; clients take turns.

        Raises:
            InvalidParameter: `top_k` is less than 1.
        """
        manifest = served.version.manifest
        if top_k is not None and top_k < 1:
            raise InvalidParameter("top_k: must be at least 1")

        wanted = TopK(min(top_k or default_top_k(manifest), manifest.n_classes), min_probability)
        answer = Classification(manifest, [])

        async def classify_one(image: bytes | ServiceError) -> Outcome:
            if isinstance(image, ServiceError):
                return image
            if self._clock() >= deadline_s:
                return DeadlineExceeded(
                    "the request's deadline passed before the picture was decoded"
                )

            try:
                result = await served.backend.answer(
                    served.version, image, deadline_s, wanted, peer
                )
            except (ImageError, ServiceError) as error:
                return error
            except MemoryError:
                return Overloaded("not enough memory for this picture now", reason="memory")
            answer.times.include(result)
            return result.ranking

        if len(images) == 1:  # a task would cost as much as the ranking
            answer.outcomes.append(await classify_one(images[0]))
        else:
            answer.outcomes.extend(await asyncio.gather(*map(classify_one, images)))
        return answer
