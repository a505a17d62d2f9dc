"""Loads published versions and finds them by name.

A version is served only after its digests, its graph's signature and its golden examples are verified
on the provider it will run on. The golden run is also the warm-up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.arrays import read_classifier
from contract.errors import GoldenMismatch, GraphMismatch, ImageError, ManifestInvalid, ModelError
from contract.manifest import MANIFEST_FILE, GoldenExample, Manifest
from contract.predictions import check_golden
from contract.preprocessing import Tensor, golden_inputs
from contract.versions import Version, find_versions, read_version, sha256
from service.errors import ModelNotFound, ProviderUnavailable
from service.models.engine import Batch, Engine, OnnxEngine, Run
from service.models.providers import PROVIDERS, ProviderFallback, open_session, try_providers

log = logging.getLogger(__name__)

PREFERRED_DEFAULT = "efficientnet_lite0"
_SOURCE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How versions are run.

    Attributes:
        provider: `auto` or a provider's name.
        threads: threads inside one run.
        lone_run_threads: threads inside a run that is alone, if more than `threads`.
        max_batch_size: most pictures in one run; None for the provider's default.
    """

    provider: str = "auto"
    threads: int = 1
    lone_run_threads: int = 1
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version that has passed every check and is ready to run.

    Attributes:
        manifest_sha256: the manifest's digest, which identifies the whole version.
        fallback: why a preferred provider is not used, None if there is none.
        golden_difference: largest difference in a golden probability, with the reference pixels or
            with those of a request.
        max_batch_size: most pictures in one run; 1 if the graph takes no more.
        load_s: seconds for reading, opening and verifying.
    """

    manifest: Manifest
    manifest_sha256: str
    engine: Engine
    provider: str
    fallback: ProviderFallback | None
    golden_difference: float
    max_batch_size: int
    load_s: float

    @property
    def key(self) -> tuple[str, int]:
        return self.manifest.name, self.manifest.version


class Repository:
    """The loaded versions, by name and number; immutable."""

    def __init__(self, versions: list[LoadedVersion], default_model: str | None = None) -> None:
        """Raises ManifestInvalid if there is no version or `default_model` is not among them."""
        self._models: dict[str, dict[int, LoadedVersion]] = {}
        for version in sorted(versions, key=lambda version: version.key):
            name, number = version.key
            self._models.setdefault(name, {})[number] = version
        if not self._models:
            raise ManifestInvalid("there is no version to serve")

        preferred = PREFERRED_DEFAULT if PREFERRED_DEFAULT in self._models else min(self._models)
        self.default_name = default_model or preferred
        if self.default_name not in self._models:
            raise ManifestInvalid(
                f"the default model {self.default_name!r} is not in the model repository; "
                f"there are: {', '.join(self._models)}"
            )

    @property
    def models(self) -> Mapping[str, Mapping[int, LoadedVersion]]:
        """Every loaded version, by name and then by number, both ascending."""
        return self._models

    def versions(self) -> list[LoadedVersion]:
        return [version for versions in self._models.values() for version in versions.values()]

    def get(self, name: str | None = None, number: int | None = None) -> LoadedVersion:
        """Returns a version: the default model without a name, the newest without a number.

        Raises:
            ModelNotFound: it is not loaded.
        """
        versions = self._models.get(name or self.default_name)
        if versions is None:
            raise ModelNotFound("no model of this name is served; GET /v1/models lists them")
        version = versions[max(versions)] if number is None else versions.get(number)
        if version is None:
            served = ", ".join(str(one) for one in versions)
            raise ModelNotFound(f"this version is not served; the served versions are: {served}")
        return version


def resolve_models_dir(configured: Path | None, working_dir: Path) -> Path:
    """Returns the configured folder or, without one, the first of these that holds a version.

    `models` in the working directory, the folder inside the installed package, and the folder in
    the source tree. If none does, returns the first.
    """
    if configured is not None:
        return configured
    candidates = (working_dir / "models", _SOURCE / "bundled_models", _SOURCE.parent / "models")
    for candidate in candidates:
        if find_versions(candidate):
            return candidate
    return candidates[0]


def no_versions(models_dir: Path) -> str:
    """Returns the error message for a folder without versions."""
    found = "no model versions found" if models_dir.is_dir() else "no such folder"
    return f"{models_dir}: {found}; set --models-dir, or publish a version with convserve-train"


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """Which versions are served, and how.

    Attributes:
        versions_per_model: how many of the newest versions of each model; 0 for all.
        default_model: the model for requests that name none.
    """

    models_dir: Path
    engine_config: EngineConfig
    versions_per_model: int = 1
    default_model: str | None = None

    def chosen(self) -> list[tuple[str, int]]:
        return [
            (name, number)
            for name, numbers in find_versions(self.models_dir).items()
            for number in (
                numbers[-self.versions_per_model :] if self.versions_per_model else numbers
            )
        ]

    def chosen_or_raise(self) -> list[tuple[str, int]]:
        if chosen := self.chosen():
            return chosen
        raise ManifestInvalid(no_versions(self.models_dir))


def load_repository(config: RepositoryConfig) -> Repository:
    # All or nothing: at the start a broken version is an error. `renew` is more forgiving.
    loaded = [
        load_version(config.models_dir, *key, config.engine_config)
        for key in config.chosen_or_raise()
    ]
    return Repository(loaded, config.default_model)


Load = Callable[[Path, str, int, EngineConfig], LoadedVersion]  # has `load_version`'s contract


def renew(
    config: RepositoryConfig, current: Repository, load: Load | None = None
) -> tuple[Repository, list[Exception]]:
    """Loads the versions that changed since `current` was loaded, with `load` or `load_version`.

    If a version of a model fails, the model keeps its loaded versions, so a broken new version takes
    nothing away. If no version would be left, `current` stays. Unchanged versions are shared with
    `current`. Returns the new repository and the failures.
    """
    kept: dict[tuple[str, int], LoadedVersion] = {}
    failures: list[Exception] = []
    loaded = {version.key: version for version in current.versions()}
    for key in config.chosen():
        try:
            kept[key] = _unchanged(loaded.get(key), config.models_dir) or (load or load_version)(
                config.models_dir, *key, config.engine_config
            )
        except (ModelError, ProviderUnavailable) as error:
            failures.append(_without_frames(error))
            kept.update((old, loaded[old]) for old in loaded if old[0] == key[0])

    try:
        return Repository(list(kept.values()), config.default_model), failures
    except ManifestInvalid as error:
        return current, [*failures, _without_frames(error)]


def _without_frames(error: Exception) -> Exception:
    # The frames of its traceback hold graphs, sessions and the list of failures: a cycle, which would
    # keep them in memory until the next full garbage collection.
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _unchanged(version: LoadedVersion | None, models_dir: Path) -> LoadedVersion | None:
    # The version if its manifest on the disk is still the same. That holds all other digests.
    if version is None:
        return None

    name, number = version.key
    try:
        text = (models_dir / name / str(number) / MANIFEST_FILE).read_bytes()
    except OSError:
        return None
    return version if sha256(text) == version.manifest_sha256 else None


def load_version(
    models_dir: Path, name: str, number: int, engine_config: EngineConfig
) -> LoadedVersion:
    """Reads, opens and verifies one version.

    Raises:
        ModelError: its files, its graph or its answers differ from what was published.
        ProviderUnavailable: the configured provider does not work here.
    """
    started_s = time.monotonic()
    version = read_version(models_dir, name, number)
    manifest = version.manifest

    def largest_batch(provider: str) -> int:
        chosen = engine_config.max_batch_size or PROVIDERS[provider].largest_batch
        return manifest.graph.fixed_batch_size or chosen

    def open_on(provider: str) -> tuple[str, OnnxEngine, float]:
        engine = _open_engine(version, provider, engine_config, largest_batch(provider))
        try:
            engine.warm_up()
            return provider, engine, replay_golden(version, engine.run, largest_batch(provider))
        except ModelError:
            raise
        except Exception as error:
            raise ProviderUnavailable(f"{provider}: running the graph fails") from error

    try:
        read_classifier(version)  # checks the file; it is small and read again when it is needed
        (provider, engine, difference), fallback = try_providers(engine_config.provider, open_on)
    except (ModelError, ProviderUnavailable) as error:
        raise type(error)(f"{name}/{number}: {error}") from error

    loaded = LoadedVersion(
        manifest=manifest,
        manifest_sha256=version.manifest_sha256,
        engine=engine,
        provider=provider,
        fallback=fallback,
        golden_difference=difference,
        max_batch_size=largest_batch(provider),
        load_s=time.monotonic() - started_s,
    )

    failed = fallback is not None and fallback.kind == "failed"
    log.log(
        logging.WARNING if failed else logging.INFO,
        "loaded",
        extra={
            "model": name,
            "version": number,
            "provider": provider,
            "provider_fallback": fallback.reason if fallback else None,
            "golden_difference": difference,
            "load_s": round(loaded.load_s, 3),
        },
    )
    return loaded


def _open_engine(
    version: Version, provider: str, engine_config: EngineConfig, largest_batch: int
) -> OnnxEngine:
    one_core = open_session(version.graph, provider, threads=engine_config.threads)
    all_cores = None
    if PROVIDERS[provider].runs_on_cores and engine_config.lone_run_threads > engine_config.threads:
        all_cores = open_session(
            version.graph, provider, threads=engine_config.lone_run_threads, spinning=True
        )
    return OnnxEngine(one_core, version.manifest, all_cores, largest_batch=largest_batch)


@dataclass(frozen=True, slots=True)
class _Replay:
    example: GoldenExample
    row: Tensor
    served: bool = False


def replay_golden(
    version: Version,
    run: Callable[[Batch, Run], NDArray[np.float32]],
    max_batch_size: int,
) -> float:
    """Runs the golden examples and returns the largest difference in an expected probability.

    Each example is run with the reference pixels and with the pixels of a request.

    Raises:
        GoldenMismatch: the answer to an example differs from the published one.
        GraphMismatch: the graph returns the wrong number of rows or classes.
    """
    manifest = version.manifest
    exact: list[_Replay] = []
    served: list[_Replay] = []
    for example in manifest.golden:
        try:
            reference, row = golden_inputs(version.contents[example.file], manifest)
        except (ImageError, GoldenMismatch) as error:
            raise GoldenMismatch(f"{example.file}: {error}") from error

        exact.append(_Replay(example, reference))
        if not np.array_equal(row, reference):  # equal pixels have the same answer
            served.append(_Replay(example, row, served=True))

    def answers(batch: list[_Replay]) -> NDArray[np.float32]:
        scores = run(np.stack([one.row for one in batch]), Run(all_cores=len(batch) == 1))
        if scores.shape != (len(batch), manifest.n_classes):
            raise GraphMismatch(
                f"{len(batch)} pictures gave scores of shape {scores.shape}, "
                f"the manifest has {manifest.n_classes} labels"
            )
        return scores

    # Both kinds of run that requests get: one picture with all cores, and a full batch, which
    # repeats the examples.
    single = [*exact, *served]
    full = [single[i % len(single)] for i in range(max_batch_size)]
    pairs = [(one, answers([one])[0]) for one in single]
    pairs += zip(full, answers(full), strict=True)
    return max(check_golden(one.example, answer, served=one.served) for one, answer in pairs)
