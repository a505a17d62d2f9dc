"""Loads published versions and finds them by name.

A version is served only after its digests, its graph's signature and its golden examples are verified
on the provider it will run on. The golden run is also the warm-up.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from contract.arrays import read_classifier
from contract.errors import (
    GoldenMismatch,
    GraphMismatch,
    ImageError,
    ModelError,
    RepositoryUnreadable,
    VersionCorrupt,
    VersionTooCostly,
)
from contract.manifest import GoldenExample, Manifest
from contract.predictions import check_golden
from contract.preprocessing import Tensor, golden_inputs
from contract.repository.file import REPOSITORY_FILE, ReadRepositoryFile
from contract.repository.listing import list_repository
from contract.repository.policy import Decision, ModelDecision, VersionKey
from contract.versions import Version, read_version
from service.errors import ModelNotFound, ModelNotReady, ProviderUnavailable
from service.models.engine import Batch, Engine, OnnxEngine, Run
from service.models.providers import PROVIDERS, ProviderFallback, open_session, try_providers
from service.models.snapshot import VersionFacts

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of the last look at a version's files.

    Attributes:
        facts: of the files then; a version is looked at again when they change.
        problem: why the files cannot be served; None if they can.
    """

    facts: VersionFacts
    problem: str | None = None


class Repository:
    """The loaded versions, and what decided about them; immutable."""

    def __init__(
        self,
        versions: Iterable[LoadedVersion],
        decision: Decision | None = None,
        *,
        file: ReadRepositoryFile | None = None,
        checked: Mapping[VersionKey, Checked] = MappingProxyType({}),
        problems: Iterable[str] = (),
    ) -> None:
        """Without a decision, the newest version of each model answers.

        Args:
            versions: every loaded version.
            decision: which of them answer; its `load` lists exactly these versions.
            file: the `repository.toml` that was applied.
            checked: by version, the last look at its files.
            problems: of the repository as a whole, one sentence each.
        """
        self._models: dict[str, dict[int, LoadedVersion]] = {}
        for version in sorted(versions, key=lambda version: version.key):
            name, number = version.key
            self._models.setdefault(name, {})[number] = version
        self.decision = decision or _newest_answer(self._models)
        self.file = file
        self.checked = checked
        self._problems = tuple(problems)

    @property
    def default_name(self) -> str | None:
        """The model of requests that name none. It may be unable to answer."""
        return self.decision.default

    @property
    def models(self) -> Mapping[str, Mapping[int, LoadedVersion]]:
        """Every loaded version, by name and then by number, both ascending."""
        return self._models

    @property
    def problems(self) -> list[str]:
        """Everything in the model repository that cannot be served as it should, one sentence each."""
        found = list(self._problems)
        for name, one in self.decision.models.items():
            found += one.failed.values()
            if one.trouble is not None and (one.answer is not None or not self._unloaded(name)):
                found.append(one.trouble)
        return list(dict.fromkeys(found))

    @property
    def held(self) -> list[str]:
        """Which versions are held back by their model's requirements, and why."""
        return [reason for one in self.decision.models.values() for reason in one.held.values()]

    def _unloaded(self, name: str) -> bool:
        return self.file is not None and self.file.parsed.policy(name).load == "none"

    def versions(self) -> list[LoadedVersion]:
        return [version for versions in self._models.values() for version in versions.values()]

    def trouble(self, name: str | None = None) -> str | None:
        """Returns why a model, or the default model, cannot answer; None if it can.

        Raises:
            ModelNotFound: there is no model of this name.
        """
        decided = self._decided(name)
        return None if decided is None or decided.answer is not None else decided.trouble

    def _decided(self, name: str | None) -> ModelDecision | None:
        # None if no name is given and there is no default.
        if name is None:
            return self.decision.models[self.default_name] if self.default_name else None
        if name not in self.decision.models:
            raise ModelNotFound("no model of this name is served; GET /v1/models lists them")
        return self.decision.models[name]

    def get(self, name: str | None = None, version: int | str | None = None) -> LoadedVersion:
        """Returns a version: of the default model without a name, the one that answers without a version.

        Args:
            name: of the model.
            version: a number or an alias.

        Raises:
            ModelNotFound: the model or the version is not there, or there is no default model.
            ModelNotReady: the model has no version that can answer.
        """
        decided = self._decided(name)
        name = name or self.default_name
        if decided is None or name is None:
            raise ModelNotFound(
                "no default model is set; post to /v1/models/{name}/classify. "
                f"The models are: {', '.join(self.decision.models)}"
            )
        if version is None:
            if decided.answer is None:
                raise ModelNotReady(f"the model {name!r} cannot answer: {decided.trouble}")
            return self._models[name][decided.answer]

        number = decided.aliases.get(version) if isinstance(version, str) else version
        found = self._models.get(name, {}).get(number) if number is not None else None
        if found is None:
            loaded = ", ".join(map(str, [*self._models.get(name, {}), *decided.aliases])) or "none"
            raise ModelNotFound(f"this version is not loaded; the loaded versions are: {loaded}")
        return found


def _newest_answer(models: Mapping[str, Mapping[int, LoadedVersion]]) -> Decision:
    decided = {name: ModelDecision(max(found), tuple(found)) for name, found in models.items()}
    return Decision(next(iter(models)) if len(models) == 1 else None, decided)


def resolve_models_dir(configured: Path | None, working_dir: Path) -> Path:
    """Returns the configured folder or, without one, the first of these that holds anything of a model.

    `models` in the working directory, the folder inside the installed package, and the folder in
    the source tree. If none does, returns the first. One that cannot be read counts: other models must
    not be served in place of what it holds.
    """
    if configured is not None:
        return configured
    candidates = (working_dir / "models", _SOURCE / "bundled_models", _SOURCE.parent / "models")
    for candidate in candidates:
        if _holds_models(candidate):
            return candidate
    return candidates[0]


def _holds_models(folder: Path) -> bool:
    try:
        has_models = bool(list_repository(folder).names)
    except RepositoryUnreadable:
        return os.path.lexists(folder)
    return has_models or os.path.lexists(folder / REPOSITORY_FILE)


def no_versions(models_dir: Path) -> str:
    """Returns the error message for a folder without versions."""
    found = "no model versions found" if models_dir.is_dir() else "no such folder"
    return f"{models_dir}: {found}; set --models-dir, or publish a version with convserve-train"


Load = Callable[[Path, str, int, EngineConfig], LoadedVersion]  # has `load_version`'s contract


def load_version(
    models_dir: Path,
    name: str,
    number: int,
    engine_config: EngineConfig,
    *,
    manifest_sha256: str | None = None,
    golden_difference: float | None = None,
) -> LoadedVersion:
    """Reads, opens and verifies one version; without limits of time and memory.

    Args:
        models_dir: the model repository.
        name: of the model.
        number: of the version.
        engine_config: how it is run.
        manifest_sha256: the only manifest that may be loaded, by its digest; None for any.
        golden_difference: what another process on this machine found for this manifest with the same
            configuration; the golden examples are then not run again. None to run them.

    Raises:
        ModelError: its files, its graph or its answers differ from what was published.
        ProviderUnavailable: the configured provider does not work here.
    """
    started_s = time.monotonic()
    version = _read(models_dir, name, number, manifest_sha256)
    manifest = version.manifest

    def largest_batch(provider: str) -> int:
        chosen = engine_config.max_batch_size or PROVIDERS[provider].largest_batch
        return manifest.graph.fixed_batch_size or chosen

    def open_on(provider: str) -> tuple[str, OnnxEngine, float]:
        engine = _open_engine(version, provider, engine_config, largest_batch(provider))
        try:
            engine.warm_up()
            if golden_difference is not None:
                _run_once(engine, manifest)
                return provider, engine, golden_difference
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


def _run_once(engine: OnnxEngine, manifest: Manifest) -> None:
    # So that no request pays for a session's first run.
    graph_input = manifest.graph.input
    row = np.zeros((1, *graph_input.shape[1:]), graph_input.dtype)
    for all_cores in (False, True):
        engine.run(row, Run(all_cores=all_cores))


def _read(models_dir: Path, name: str, number: int, manifest_sha256: str | None) -> Version:
    try:
        version = read_version(models_dir, name, number)
    except MemoryError as error:
        raise VersionTooCostly(f"{name}/{number}: there is no memory to read its files") from error
    if manifest_sha256 not in (None, version.manifest_sha256):
        raise VersionCorrupt(f"{name}/{number}: it was replaced while it was being loaded")
    return version


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
