"""The use case: pictures in, predictions or each picture's own error out. Knows nothing of HTTP.

Every wire format is a thin adapter on `Classifier.classify`, so that all of them behave alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from contract.errors import ImageError
from contract.images import ImageLimits, decode
from contract.manifest import Manifest
from contract.predictions import Prediction, to_predictions
from contract.preprocessing import Tensor, to_input
from service.batcher import BatchedRow
from service.errors import (
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
    ServiceError,
)
from service.repository import LoadedVersion, Repository

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

    prepare_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    batch_size: int = 0

    def include(self, prepare_s: float, row: BatchedRow) -> None:
        """Takes one picture's times into account."""
        self.prepare_s = max(self.prepare_s, prepare_s)
        self.queue_s = max(self.queue_s, row.queue_s)
        self.infer_s = max(self.infer_s, row.run_s)
        self.batch_size = max(self.batch_size, row.batch_size)


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


class Submitter(Protocol):
    """What the classifier needs of a batcher."""

    async def submit(self, row: Tensor, deadline_s: float) -> BatchedRow:
        """Answers one prepared picture; see `Batcher.submit`."""
        ...


@dataclass(slots=True, eq=False)
class Serving:
    """The versions being served and the batcher of each; swapped as a whole.

    Attributes:
        repository: the versions.
        batchers: one for each, by name and number.
        n_users: requests that were given a version of this set and are not answered yet.
    """

    repository: Repository
    batchers: dict[tuple[str, int], Submitter]
    n_users: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps this set's batchers open for the time of a request."""
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


@dataclass(frozen=True, slots=True)
class _Task:
    """What the pictures of one request have in common."""

    version: LoadedVersion
    batcher: Submitter
    choice: Choice
    deadline_s: float


class Classifier:
    """Decodes and prepares pictures on the prepare pool and has the batchers answer them."""

    def __init__(
        self,
        serving: Serving,
        prepare_pool: Executor,
        limits: ImageLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connects the parts.

        Args:
            serving: the versions and their batchers.
            prepare_pool: where pictures are decoded, apart from inference.
            limits: what one picture may cost.
            clock: monotonic seconds; deadlines are on the same clock.
        """
        self.serving = serving
        self._pool = prepare_pool
        self._limits = limits
        self._clock = clock

    def find(self, choice: Choice) -> LoadedVersion:
        """Returns the chosen version after checking the choice against it.

        Raises:
            ModelNotFound: it is not served.
            InvalidParameter: `top_k` exceeds the number of classes.
        """
        version = self.serving.repository.get(choice.model, choice.version)
        n_classes = version.manifest.n_classes
        if choice.top_k is not None and not 1 <= choice.top_k <= n_classes:
            raise InvalidParameter(f"top_k: must be 1 to {n_classes} for this model")
        return version

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
        task = _Task(version, serving.batchers[version.key], choice, deadline_s)
        answer = Answer(version.manifest, [])
        with serving.in_use():
            jobs = [self._classify_one(image, task, answer) for image in images]
            answer.outcomes.extend(await asyncio.gather(*jobs))
        return answer

    async def _classify_one(
        self, image: bytes | ServiceError, task: _Task, answer: Answer
    ) -> Outcome:
        if isinstance(image, ServiceError):
            return image
        manifest, choice = task.version.manifest, task.choice
        try:
            async with asyncio.timeout(max(0.0, task.deadline_s - self._clock())):
                row, prepare_s = await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._prepare, image, manifest
                )
                answered = await task.batcher.submit(row, task.deadline_s)
        except TimeoutError:
            return DeadlineExceeded("the picture was not answered within the request's deadline")
        except (ImageError, ServiceError) as error:
            return error
        answer.times.include(prepare_s, answered)
        k = choice.top_k or DEFAULT_TOP_K
        return to_predictions(answered.probabilities, manifest, k, choice.min_probability)

    def _prepare(self, image: bytes, manifest: Manifest) -> tuple[Tensor, float]:
        started_s = self._clock()
        try:
            row = to_input(decode(image, self._limits), manifest)
        except MemoryError as error:
            raise Overloaded("not enough memory to decode this picture now") from error
        return row, self._clock() - started_s
