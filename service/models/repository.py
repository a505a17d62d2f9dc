"""Loads published versions, proves each on the provider it will run on, and finds them by name.

A version is served only after its digests, its graph's signature and its golden examples have been
checked; the golden run on one picture and on a full batch is the warm-up as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import GoldenMismatch, GraphMismatch, ImageError, ManifestInvalid, ModelError
from contract.manifest import MANIFEST_FILE, Manifest
from contract.predictions import check_golden
from contract.preprocessing import Tensor, golden_input
from contract.versions import Version, find_versions, read_version, sha256
from service.errors import ModelNotFound, ProviderUnavailable
from service.models.engine import Batch, Engine, OnnxEngine, Run
from service.models.providers import PROVIDERS, ProviderFallback, on_chosen_provider, open_session

log = logging.getLogger(__name__)

PREFERRED_DEFAULT = "efficientnet_lite0"
_SOURCE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How versions are run: the provider choice and the shape of a run.

    Attributes:
        provider: `auto` or a provider's name.
        threads: threads inside one run beside others.
        wide_threads: threads inside a run that is alone; where there are no more than `threads`,
            all runs are alike.
        max_batch_size: pictures in one run at most; None for what the provider suggests.
    """

    provider: str = "auto"
    threads: int = 1
    wide_threads: int = 1
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version that has passed every check and is ready to run.

    Attributes:
        manifest: what it is.
        manifest_sha256: digest of the manifest, which covers every file.
        engine: runs it.
        provider: the execution provider it runs on.
        fallback: why a preferred provider was passed over, None if none was.
        golden_difference: largest difference of a golden probability in the replay.
        max_batch_size: pictures in one run at most: 1 where the graph allows no more.
        load_s: seconds that reading, opening and replaying took.
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
        """The name and the version number."""
        return self.manifest.name, self.manifest.version


class Repository:
    """The loaded versions, by name and number; immutable."""

    def __init__(self, versions: list[LoadedVersion], default_model: str | None = None) -> None:
        """Arranges the versions.

        Raises:
            ManifestInvalid: there is no version, or `default_model` is not among them.
        """
        self._models: dict[str, dict[int, LoadedVersion]] = {}
        for version in sorted(versions, key=lambda version: version.key):
            name, number = version.key
            self._models.setdefault(name, {})[number] = version
        if not self._models:
            raise ManifestInvalid("there is no version to serve")
        preferred = PREFERRED_DEFAULT if PREFERRED_DEFAULT in self._models else min(self._models)
        self.default_name = default_model or preferred
        if self.default_name not in self._models:
            raise ManifestInvalid(f"the default model {self.default_name!r} is not there")

    @property
    def models(self) -> Mapping[str, Mapping[int, LoadedVersion]]:
        """Every loaded version, by name and then by number, both ascending."""
        return self._models

    def versions(self) -> list[LoadedVersion]:
        """Returns every loaded version."""
        return [version for versions in self._models.values() for version in versions.values()]

    def get(self, name: str | None = None, number: int | None = None) -> LoadedVersion:
        """Returns a version: of the default model if no name, the newest if no number is given.

        Raises:
            ModelNotFound: it is not loaded.
        """
        versions = self._models.get(name or self.default_name)
        if versions is None:
            raise ModelNotFound("no model of this name is served; GET /v1/models lists them")
        version = versions[max(versions)] if number is None else versions.get(number)
        if version is None:
            served = ", ".join(str(one) for one in versions)
            raise ModelNotFound(f"this version is not served; served are: {served}")
        return version


def resolve_models_dir(configured: Path | None, working_dir: Path) -> Path:
    """Returns the model repository to use.

    The configured one; else `models` in the working directory if it holds a version; else the one
    inside the installed package; else the one of the source tree.
    """
    if configured is not None:
        return configured
    candidates = (working_dir / "models", _SOURCE / "bundled_models", _SOURCE.parent / "models")
    for candidate in candidates:
        if find_versions(candidate):
            return candidate
    return candidates[0]


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """Where versions are, which of them are served and how.

    Attributes:
        models_dir: the model repository.
        plan: how versions will run.
        versions_per_model: how many of the newest of each; 0 for all.
        default_model: the model that is used where a request names none.
    """

    models_dir: Path
    plan: EngineConfig
    versions_per_model: int = 1
    default_model: str | None = None

    def chosen(self) -> list[tuple[str, int]]:
        """Returns name and number of every version to serve."""
        return [
            (name, number)
            for name, numbers in find_versions(self.models_dir).items()
            for number in (
                numbers[-self.versions_per_model :] if self.versions_per_model else numbers
            )
        ]

    def chosen_or_raise(self) -> list[tuple[str, int]]:
        """Returns as `chosen`.

        Raises:
            ManifestInvalid: there is nothing to serve.
        """
        if chosen := self.chosen():
            return chosen
        raise ManifestInvalid("the model repository holds no version (<name>/<version>/)")


def load_repository(config: RepositoryConfig) -> Repository:
    """Loads every chosen version.

    Raises:
        ModelError: any of them cannot be served, and why.
        ProviderUnavailable: the provider asked for cannot be used here.
    """
    loaded = [
        load_version(config.models_dir, *key, config.plan) for key in config.chosen_or_raise()
    ]
    return Repository(loaded, config.default_model)


Load = Callable[[Path, str, int, EngineConfig], LoadedVersion]
"""Reads, opens and proves one version, as `load_version` does."""


def renew(
    config: RepositoryConfig, current: Repository, load: Load | None = None
) -> tuple[Repository, list[Exception]]:
    """Loads what has changed since `current` was loaded.

    A model of which a version fails keeps the versions it has, so that a broken new one takes
    nothing away; so does the whole where nothing usable would be left.

    Args:
        config: where versions are.
        current: what is being served.
        load: in place of `load_version`, which opens them in this process.

    Returns:
        The renewed repository, with the very objects of unchanged versions, and the failures.
    """
    kept: dict[tuple[str, int], LoadedVersion] = {}
    failures: list[Exception] = []
    loaded = {version.key: version for version in current.versions()}
    for key in config.chosen():
        try:
            kept[key] = _unchanged(loaded.get(key), config.models_dir) or (load or load_version)(
                config.models_dir, *key, config.plan
            )
        except (ModelError, ProviderUnavailable) as error:
            failures.append(error)
            kept.update((old, loaded[old]) for old in loaded if old[0] == key[0])
    try:
        return Repository(list(kept.values()), config.default_model), failures
    except ManifestInvalid as error:
        return current, [*failures, error]


def _unchanged(version: LoadedVersion | None, models_dir: Path) -> LoadedVersion | None:
    """Returns the loaded version if its manifest is still the one on the disk."""
    if version is None:
        return None
    name, number = version.key
    try:
        text = (models_dir / name / str(number) / MANIFEST_FILE).read_bytes()
    except OSError:
        return None
    return version if sha256(text) == version.manifest_sha256 else None


def load_version(models_dir: Path, name: str, number: int, plan: EngineConfig) -> LoadedVersion:
    """Reads, opens and proves one version.

    Raises:
        ModelError: its files, its graph or its answers are not what was published.
        ProviderUnavailable: the provider asked for cannot be used here.
    """
    started_s = time.monotonic()
    version = read_version(models_dir, name, number)
    manifest = version.manifest

    def largest_batch(provider: str) -> int:
        chosen = plan.max_batch_size or PROVIDERS[provider].largest_batch
        return manifest.graph.fixed_batch_size or chosen

    def prove(provider: str) -> tuple[str, OnnxEngine, float]:
        engine = _open_engine(version, provider, plan, largest_batch(provider))
        try:
            engine.warm_up()
            return provider, engine, replay_golden(version, engine.run, largest_batch(provider))
        except ModelError:
            raise
        except Exception as error:
            raise ProviderUnavailable(f"{provider}: the graph fails when it is run") from error

    try:
        (provider, engine, difference), fallback = on_chosen_provider(plan.provider, prove)
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
    version: Version, provider: str, plan: EngineConfig, largest_batch: int
) -> OnnxEngine:
    narrow = open_session(version.graph, provider, threads=plan.threads)
    wide = None
    if PROVIDERS[provider].runs_on_cores and plan.wide_threads > plan.threads:
        wide = open_session(version.graph, provider, threads=plan.wide_threads, spinning=True)
    return OnnxEngine(narrow, version.manifest, wide, largest_batch=largest_batch)


def replay_golden(
    version: Version,
    run: Callable[[Batch, Run], NDArray[np.float32]],
    max_batch_size: int,
) -> float:
    """Replays the golden examples one by one, with all cores, and as a full batch, without.

    Args:
        version: whose manifest and pictures are used.
        run: batch (N, ...) to probabilities (N, C); see `Engine.run`.
        max_batch_size: N of the full batch; the examples are repeated to fill it.

    Returns:
        The largest difference of an expected probability.

    Raises:
        GoldenMismatch: an example is not answered as published.
        GraphMismatch: the graph answers with another number of rows or classes.
    """
    manifest = version.manifest
    rows = []
    for example in manifest.golden:
        try:
            rows.append(golden_input(version.contents[example.file], manifest))
        except ImageError as error:
            raise GoldenMismatch(f"{example.file}: {error}") from error

    def answers(batch: list[Tensor]) -> NDArray[np.float32]:
        scores = run(np.stack(batch), Run(wide=len(batch) == 1))
        if scores.shape != (len(batch), manifest.n_classes):
            raise GraphMismatch(
                f"{len(batch)} pictures gave scores of shape {scores.shape}, "
                f"the manifest has {manifest.n_classes} labels"
            )
        return scores

    single = [answers([row])[0] for row in rows]
    full = answers([rows[i % len(rows)] for i in range(max_batch_size)])
    pairs = list(zip(manifest.golden, single, strict=True))
    pairs += [(manifest.golden[i % len(rows)], answer) for i, answer in enumerate(full)]
    return max(check_golden(example, answer) for example, answer in pairs)
