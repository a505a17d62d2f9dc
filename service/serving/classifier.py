"""The use case: pictures in, predictions or each picture's own error out. Knows nothing of HTTP.

Every wire format is a thin adapter on `Classifier.classify`, so that all of them behave alike.
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
from service.models.repository import LoadedVersion
from service.serving.backend import Answered, Answerer

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model answers and how much of its answer is wanted.

    Attributes:
        model: name; None for the default model.
        version: number; None for the newest that is loaded.
        top_k: predictions at most, 1..C; None for `DEFAULT_TOP_K` or C if that is less.
        min_probability: less probable predictions are left out, 0..1.
    """

    model: str | None = None
    version: int | None = None
    top_k: int | None = None
    min_probability: float = 0.0


@dataclass(slots=True)
class StageTimes:
    """Seconds that a request spent in each stage; of several pictures the longest counts."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    rank_s: float = 0.0
    batch_size: int = 0

    def include(self, one: Answered, rank_s: float) -> None:
        """Takes one picture's times into account."""
        self.decode_s = max(self.decode_s, one.decode_s)
        self.preprocess_s = max(self.preprocess_s, one.preprocess_s)
        self.queue_s = max(self.queue_s, one.queue_s)
        self.infer_s = max(self.infer_s, one.infer_s)
        self.rank_s += rank_s
        self.batch_size = max(self.batch_size, one.batch_size)


Outcome = list[Prediction] | ImageError | ServiceError


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request.

    Attributes:
        manifest: of the version that answered.
        outcomes: for each picture, in order, its predictions or its own error.
        times: how long the stages took.
    """

    manifest: Manifest
    outcomes: list[Outcome]
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(slots=True, eq=False)
class Serving:
    """What answers with the versions being served; swapped as a whole.

    Attributes:
        answerer: answers with the versions of its repository.
        n_users: requests that were given a version of this set and are not answered yet.
    """

    answerer: Answerer
    n_users: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the answerer open for the time of a request."""
        self.n_users += 1
        try:
            yield
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
    """Has pictures answered and ranks what comes back."""

    def __init__(self, serving: Serving, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Connects the parts.

        Args:
            serving: the versions and what answers for them.
            clock: monotonic seconds; deadlines are on the same clock.
        """
        self.serving = serving
        self._clock = clock

    def find(self, choice: Choice) -> LoadedVersion:
        """Returns the chosen version after checking the choice against it.

        Raises:
            ModelNotFound: it is not served.
            InvalidParameter: `top_k` exceeds the number of classes.
        """
        version = self.serving.answerer.repository.get(choice.model, choice.version)
        n_classes = version.manifest.n_classes
        if choice.top_k is not None and not 1 <= choice.top_k <= n_classes:
            raise InvalidParameter(f"top_k: must be 1 to {n_classes} for this model")
        return version

    def expected_s(self, version: LoadedVersion) -> float:
        """Returns how long a picture that came now would take, as far as known."""
        return self.serving.answerer.expected_s(version)

    async def classify(
        self, images: Sequence[bytes | ServiceError], choice: Choice, deadline_s: float
    ) -> Answer:
        """Classifies the pictures of one request.

        Args:
            images: whole image files; an error in place of one that could not even be read becomes
                that picture's outcome.
            choice: the model and how much of its answer.
            deadline_s: on the clock; pictures unanswered by then get DeadlineExceeded.

        Raises:
            ModelNotFound, InvalidParameter: as `find`.
        """
        version = self.find(choice)
        serving = self.serving
        answer = Answer(version.manifest, [])
        with serving.in_use():
            jobs = [self._classify_one(one, version, choice, deadline_s, answer) for one in images]
            if len(jobs) == 1:  # a task would cost as much as ranking does
                answer.outcomes.append(await jobs[0])
            else:
                answer.outcomes.extend(await asyncio.gather(*jobs))
        return answer

    async def _classify_one(
        self,
        image: bytes | ServiceError,
        version: LoadedVersion,
        choice: Choice,
        deadline_s: float,
        answer: Answer,
    ) -> Outcome:
        if isinstance(image, ServiceError):
            return image
        late = DeadlineExceeded("the picture was not answered within the request's deadline")
        left_s = deadline_s - self._clock()
        if left_s <= 0:
            return late
        try:
            async with asyncio.timeout(left_s):
                answered = await self.serving.answerer.answer(version, image, deadline_s)
        except TimeoutError:
            return late
        except (ImageError, ServiceError) as error:
            return error
        started_s = self._clock()
        predictions = to_predictions(
            answered.probabilities,
            answer.manifest,
            choice.top_k or DEFAULT_TOP_K,
            choice.min_probability,
        )
        answer.times.include(answered, self._clock() - started_s)
        return predictions
