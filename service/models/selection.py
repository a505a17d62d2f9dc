"""Chooses, loads and verifies the versions to serve, at the start and again when something changed.

`contract.repository.policy.decide` says which versions are wanted. Those are loaded. A version that fails
is not wanted any more, so the rule is applied again, until every wanted version is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from contract.errors import (
    ContractError,
    NothingToServe,
    RepositoryFileInvalid,
    RepositoryUnreadable,
)
from contract.repository.file import (
    ReadRepositoryFile,
    RepositoryFile,
    read_repository_file,
    repository_file_path,
)
from contract.repository.listing import Listed, Listing
from contract.repository.policy import Decision, VersionKey, decide
from contract.versions import read_version
from service.errors import ProviderUnavailable
from service.models.listing import ListingCache
from service.models.repository import (
    Checked,
    EngineConfig,
    Load,
    LoadedVersion,
    Repository,
    load_version,
    no_versions,
)
from service.models.snapshot import VersionFacts, snapshot, version_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """Where the versions are, and how they are run.

    Attributes:
        repository_file: the `repository.toml` to apply; None for the one in `models_dir`.
        skip_broken: start although a model cannot be served, if another one can.
        listing: remembers the manifests.
    """

    models_dir: Path
    engine_config: EngineConfig
    repository_file: Path | None = None
    skip_broken: bool = False
    listing: ListingCache = field(default_factory=ListingCache, compare=False)

    @property
    def file_path(self) -> Path:
        return repository_file_path(self.models_dir, self.repository_file)

    def snapshot(self) -> VersionFacts:
        return snapshot(self.models_dir, self.file_path)


@dataclass(frozen=True, slots=True)
class Start:
    """What a start finds before anything is loaded."""

    file: ReadRepositoryFile
    listing: Listing
    decision: Decision


def look(config: RepositoryConfig) -> Start:
    """Reads `repository.toml` and the manifests, and decides what a start would load.

    Raises:
        RepositoryUnreadable: the model repository is missing or cannot be listed.
        RepositoryFileInvalid: `repository.toml` cannot be read, or is not valid, or is configured and
            missing.
        NothingToServe: there is no version at all.
    """
    file = read_repository_file(config.file_path)
    if file.text is None and config.repository_file is not None:
        # A wrong path must not let versions answer that the file would not.
        raise RepositoryFileInvalid(
            f"{file.path}: the configured repository file is missing; create it, even if it is empty, "
            "or do not set --repository-file"
        )
    try:
        listing = config.listing.list(config.models_dir)
    except RepositoryUnreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise RepositoryUnreadable(no_versions(config.models_dir)) from error
        raise
    if not listing.names:
        raise NothingToServe(no_versions(config.models_dir))
    return Start(file, listing, decide(file.parsed, listing, {}))


def load_repository(config: RepositoryConfig, load: Load = load_version) -> Repository:
    """Loads the versions to serve.

    Raises:
        RepositoryError: there is nothing to serve, or a model has no version that can answer and
            `skip_broken` is false.
    """
    start = look(config)
    selection = _Selection(config, load)
    decision = selection.choose(start.file.parsed, start.listing)
    check_start(config, start.file.parsed, decision)
    return Repository(
        selection.chosen(decision), decision, file=start.file, checked=selection.checked
    )


def check_start(config: RepositoryConfig, file: RepositoryFile, decision: Decision) -> None:
    """Raises NothingToServe if a service must not start with this decision."""
    broken = [
        one.trouble
        for name, one in decision.models.items()
        if one.answer is None and one.trouble and file.policy(name).load != "none"
    ]
    can_answer = any(one.answer is not None for one in decision.models.values())
    if not broken and can_answer:
        return
    if not broken:
        raise NothingToServe(f'{config.file_path}: every model has load = "none"')
    if config.skip_broken and can_answer:
        return
    way_out = "; --skip-broken serves the other models" if can_answer else ""
    raise NothingToServe(f"{config.models_dir}: {'; '.join(broken)}{way_out}")


def renew(
    config: RepositoryConfig, current: Repository, load: Load = load_version, *, retry: bool = False
) -> Repository:
    """Returns the repository as it should be served now. Unchanged versions are the same objects.

    Nothing is taken away by what cannot be read: a version that fails to load, an invalid
    `repository.toml` or a folder that cannot be listed leave what is served as it is, and are among the
    new repository's problems.

    Args:
        config: as for `load_repository`.
        current: what is served now.
        load: loads and verifies a version.
        retry: load versions again that failed, although their files have not changed.
    """
    try:
        on_disk = config.listing.list(config.models_dir)
    except RepositoryUnreadable as error:
        return _unchanged(current, str(error))
    if not on_disk.names:
        return _unchanged(current, f"{config.models_dir}: the models have disappeared")

    listing = _with_loaded(on_disk, current)
    file, problem = _read_file(config.file_path, current, listing)
    selection = _Selection(config, load, current, retry=retry)
    decision = selection.choose(file.parsed, listing)
    decision = selection.keep_answers(decision, file.parsed, current, listing)
    decision, unfit = _keep_default(decision, current)
    versions = selection.chosen(decision)
    if not versions:
        return _unchanged(current, "; ".join(selection.problems()) or "no model is left to serve")
    return Repository(
        versions,
        decision,
        file=file,
        checked=selection.checked,
        problems=[one for one in (problem, unfit) if one],
    )


def _keep_default(decision: Decision, current: Repository) -> tuple[Decision, str | None]:
    """Keeps the default model if the one that takes its place cannot answer; returns why."""
    before, after = current.default_name, decision.default
    if before is None or after is None or before == after:
        return decision, None
    answers = before in decision.models and decision.models[before].answer is not None
    if not answers or decision.models[after].answer is not None:
        return decision, None
    trouble = f"default: {after} cannot answer, so {before} stays the default"
    return replace(decision, default=before), f"{trouble}: {decision.models[after].trouble}"


def _unchanged(current: Repository, problem: str) -> Repository:
    return Repository(
        current.versions(),
        current.decision,
        file=current.file,
        checked=current.checked,
        problems=[problem],
    )


def _with_loaded(on_disk: Listing, current: Repository) -> Listing:
    # A loaded version whose files cannot be read any more can still answer, and so can one that
    # `repository.toml` names but somebody deleted.
    models = {name: dict(found) for name, found in on_disk.models.items()}
    unreadable = dict(on_disk.unreadable)
    for version in current.versions():
        name, number = version.key
        loaded = Listed(version.manifest, version.manifest_sha256)
        if unreadable.pop(name, None) is not None:
            models[name] = {}
        if name not in models:
            continue
        found = models[name].get(number)
        policy = current.file.parsed.policy(name) if current.file else None
        named = policy is not None and number in policy.named()
        gone = found is None and (named or name in on_disk.unreadable)
        if gone or (found is not None and found.problem is not None):
            models[name][number] = loaded
    return Listing(models, unreadable)


def _read_file(
    path: Path, current: Repository, listing: Listing
) -> tuple[ReadRepositoryFile, str | None]:
    """Returns the file to apply, and why it is not the one on disk, if it is not."""
    before = current.file or ReadRepositoryFile(path)
    try:
        file = read_repository_file(path)
    except RepositoryFileInvalid as error:
        return before, str(error)
    if file.text == before.text:
        return before, None
    if file.text is None:
        return before, f"{path}: the file has disappeared; what it said still holds"
    missing = _missing_names(file.parsed, before.parsed, listing)
    return (before, f"{path}: {missing}; the file is not applied") if missing else (file, None)


def _missing_names(file: RepositoryFile, before: RepositoryFile, listing: Listing) -> str | None:
    # What was missing before, as at the start, does not stand in the way of other changes.
    if file.default not in (None, before.default, *listing.names):
        return f"default: there is no model {file.default!r}"
    for name, policy in file.models.items():
        found = listing.models.get(name)
        if found is None:
            continue
        if missing := policy.named() - found.keys() - before.policy(name).named():
            return f"models.{name}: there is no version {min(missing)}"
    return None


class _Selection:
    """Loads what is wanted, and remembers what failed."""

    def __init__(
        self,
        config: RepositoryConfig,
        load: Load,
        current: Repository | None = None,
        *,
        retry: bool = False,
    ) -> None:
        self._config = config
        self._load = load
        self._default = current.default_name if current else None
        self._old = {one.key: one for one in current.versions()} if current else {}
        self._known = self._still_known(current.checked if current else {}, retry=retry)
        self._loaded: dict[VersionKey, LoadedVersion] = {}

        # Versions that failed before are not loaded again for nothing, but they stay visible.
        self.checked = {
            key: one for key, one in self._known.items() if one.problem and key not in self._old
        }
        self._failures = {key: one.problem or "" for key, one in self.checked.items()}

    def _still_known(
        self, checked: Mapping[VersionKey, Checked], *, retry: bool
    ) -> dict[VersionKey, Checked]:
        return {
            key: one
            for key, one in checked.items()
            if not (retry and one.problem)
            and one.facts == version_facts(self._config.models_dir, *key)
        }

    def choose(self, file: RepositoryFile, listing: Listing) -> Decision:
        """Loads until every version that the rule wants is loaded; returns the decision."""
        while True:
            decision = decide(file, listing, self._failures, self._default)
            missing = [key for key in decision.wanted() if key not in self._loaded]
            if not missing:
                return self._with_problems(decision)
            for key in missing:
                self._take(key)

    def chosen(self, decision: Decision) -> list[LoadedVersion]:
        return [self._loaded[key] for key in decision.wanted()]

    def problems(self) -> list[str]:
        return [one.problem for one in self.checked.values() if one.problem is not None]

    def keep_answers(
        self, decision: Decision, file: RepositoryFile, current: Repository, listing: Listing
    ) -> Decision:
        """Lets a model go on answering whose new version cannot. A model that is gone stays gone.

        So do its aliases, which go on meaning the version that they did.
        """
        models = dict(decision.models)
        for name in listing.names:
            one, before = decision.models[name], current.decision.models.get(name)
            policy = file.policy(name)
            if before is None or policy.load == "none":
                continue
            answer = before.answer if one.answer is None else one.answer
            aliases = {
                alias: number
                for alias, number in {**before.aliases, **one.aliases}.items()
                if alias in policy.aliases
            }
            kept = {*aliases.values(), *(() if answer is None else (answer,))} - {*one.load}
            self._loaded |= {(name, number): self._old[name, number] for number in kept}
            load = tuple(sorted(kept | {*one.load}))
            models[name] = replace(one, answer=answer, load=load, aliases=aliases)
        return replace(decision, models=models)

    def _take(self, key: VersionKey) -> None:
        facts = version_facts(self._config.models_dir, *key)
        version, known = self._old.get(key), self._known.get(key)
        if version is not None and known is not None:
            problem = known.problem
        else:
            version, problem = self._load_now(key, version)

        self.checked[key] = Checked(facts, problem)
        if version is not None:
            self._loaded[key] = version
        else:
            self._failures[key] = problem or f"{key[0]}/{key[1]} cannot be served"

    def _load_now(
        self, key: VersionKey, old: LoadedVersion | None
    ) -> tuple[LoadedVersion | None, str | None]:
        models_dir = self._config.models_dir
        try:
            if old is not None:
                found = read_version(models_dir, *key)
                if found.manifest_sha256 == old.manifest_sha256:
                    return old, None
            return self._load(models_dir, *key, self._config.engine_config), None
        except (ContractError, ProviderUnavailable) as error:
            # Only the text is kept: the traceback's frames hold graphs and sessions.
            # A file's name may be no UTF-8, which JSON could not carry.
            return old, str(error).encode(errors="backslashreplace").decode()
        except Exception as error:
            # Native code can raise anything, and one version must not keep others from being served.
            log.exception("loading %s/%s failed unexpectedly", *key)
            return old, f"{key[0]}/{key[1]}: {type(error).__name__}"

    def _with_problems(self, decision: Decision) -> Decision:
        # Versions that answer from memory, although their files cannot be served any more.
        models = dict(decision.models)
        for (name, number), checked in self.checked.items():
            if checked.problem is not None and name in models:
                one = models[name]
                models[name] = replace(one, failed={**one.failed, number: checked.problem})
        return replace(decision, models=models)
