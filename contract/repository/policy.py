"""The rule that decides which versions are loaded and which one answers.

`decide` depends on nothing but its arguments, so replicas that share a model repository agree, and a
restart comes to the same result as the process before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from contract.comparison import compare_labels
from contract.manifest import Manifest
from contract.repository.file import ModelPolicy, Newest, RepositoryFile, Requirements
from contract.repository.listing import Listed, Listing

VersionKey = tuple[str, int]

_MAX_NAMED: Final = 5  # labels in a message


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """What is served of one model.

    Attributes:
        answer: the version that answers, None if there is none.
        load: the versions to load, ascending, with the one that answers.
        aliases: version by alias, for versions that are loaded.
        failed: why versions cannot be used, by number.
        held: why versions do not become the latest one by themselves, by number.
        trouble: why nothing answers, or why not what the file says; None if all is well.
    """

    answer: int | None = None
    load: tuple[int, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    held: Mapping[int, str] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is served of a model repository.

    Attributes:
        default: the model of requests that name none, whether it can answer or not. None if the
            file names none and there are several models.
        models: by name, in alphabetical order; with the default, even if it does not exist.
        warnings: what the owner should know, one sentence each.
    """

    default: str | None
    models: Mapping[str, ModelDecision]
    warnings: tuple[str, ...] = ()

    def wanted(self) -> list[VersionKey]:
        """Returns every version to load, in order."""
        return [(name, number) for name, one in self.models.items() for number in one.load]


def decide(
    file: RepositoryFile,
    listing: Listing,
    failures: Mapping[VersionKey, str],
    current_default: str | None = None,
) -> Decision:
    """Decides what is served.

    Args:
        file: the content of `repository.toml`, or the defaults.
        listing: what is on disk.
        failures: versions that failed to load, with the reason.
        current_default: the default of a running service, which stays where the file names none.
    """
    names = listing.names
    default = file.default or current_default or (names[0] if len(names) == 1 else None)
    warnings = _default_warnings(file.default, default, names)

    models = {name: _decide_model(name, file.policy(name), listing, failures) for name in names}
    for name in {*file.models, *((default,) if default else ())} - set(names):
        others = ", ".join(names) or "none"
        trouble = f"there is no model {name!r} in the model repository; the models are: {others}"
        if name == default:
            models[name] = ModelDecision(trouble=trouble)
        else:
            warnings.append(trouble)
    return Decision(default, dict(sorted(models.items())), tuple(warnings))


def _default_warnings(configured: str | None, default: str | None, names: list[str]) -> list[str]:
    if configured is not None or len(names) < 2:
        return []
    if default is not None:
        return [
            f"there are several models and repository.toml names no default; {default!r} stays the "
            f'default of this process. To keep it, write: default = "{default}"'
        ]
    return [
        "there are several models and repository.toml names no default, so requests that name no "
        f'model get 404. To set one, write: default = "{names[0]}"'
    ]


def _decide_model(
    name: str, policy: ModelPolicy, listing: Listing, failures: Mapping[VersionKey, str]
) -> ModelDecision:
    if name in listing.unreadable:
        return ModelDecision(trouble=listing.unreadable[name])

    on_disk = listing.models[name]
    failed = {number: one.problem for number, one in on_disk.items() if one.problem is not None}
    failed |= {number: reason for (model, number), reason in failures.items() if model == name}
    failed |= {
        number: f"{name}/{number}: repository.toml names it, but there is no such version"
        for number in sorted(policy.named())
        if number not in on_disk
    }
    if policy.load == "none":
        return ModelDecision(failed=failed, trouble='repository.toml says load = "none"')

    good = {number: one for number, one in on_disk.items() if number not in failed}
    accepted, held = _accepted(name, good, policy.require)
    answer = _answer(policy, good, accepted)
    extra = {*_loaded(policy, good, accepted), *policy.aliases.values()} & good.keys()
    load = tuple(sorted(extra | ({answer} if answer else set())))
    return ModelDecision(
        answer,
        load,
        {alias: number for alias, number in policy.aliases.items() if number in load},
        failed,
        held,
        None if answer else _trouble(name, policy, failed, held),
    )


def _accepted(
    name: str, good: Mapping[int, Listed], require: Requirements
) -> tuple[list[int], dict[int, str]]:
    # From the oldest to the newest, each compared with the newest accepted before it.
    accepted: list[int] = []
    held: dict[int, str] = {}
    before: Manifest | None = None
    for number in sorted(good):
        manifest = good[number].manifest
        if manifest is None:
            continue
        reason = _violation(require, manifest, before)
        if reason is None:
            accepted.append(number)
            before = manifest
        else:
            held[number] = f"{name}/{number}: held back: {reason}"
    return accepted, held


def _answer(policy: ModelPolicy, good: Mapping[int, Listed], accepted: list[int]) -> int | None:
    if policy.answer == "latest":
        return max(accepted, default=None)
    pinned = policy.pinned()
    return pinned if pinned in good else None


def _loaded(policy: ModelPolicy, good: Mapping[int, Listed], accepted: list[int]) -> list[int]:
    if isinstance(policy.load, tuple):
        return [number for number in policy.load if number in good]
    if isinstance(policy.load, Newest):
        return accepted[-policy.load.newest :]
    return accepted if policy.load == "all" else []


def _trouble(
    name: str, policy: ModelPolicy, failed: Mapping[int, str], held: Mapping[int, str]
) -> str:
    reasons = {**held, **failed}
    pinned = policy.pinned()
    if pinned is not None:
        return reasons.get(pinned, f"{name}/{pinned} cannot be served")
    if not reasons:
        return f"{name}: there is no version that may answer"
    newest = max(reasons)
    others = f" ({len(reasons) - 1} more versions cannot be used)" if len(reasons) > 1 else ""
    return reasons[newest] + others


def _violation(require: Requirements, manifest: Manifest, before: Manifest | None) -> str | None:
    """Returns which requirement the version does not satisfy, or None."""
    metrics = manifest.metrics
    if require.min_test_pictures is not None:
        n = metrics.n_images if metrics else 0
        if n < require.min_test_pictures:
            return (
                f"measured on {n} test pictures; at least {require.min_test_pictures} are required"
            )
    if require.min_top1_percent is not None and (
        metrics is None or metrics.top1_percent < require.min_top1_percent
    ):
        found = f"{metrics.top1_percent:g}%" if metrics else "unknown"
        return f"top-1 accuracy is {found}; at least {require.min_top1_percent:g}% is required"
    return None if before is None else _compare(require, manifest, before)


def _compare(require: Requirements, manifest: Manifest, before: Manifest) -> str | None:
    if require.labels == "same" and manifest.labels != before.labels:
        return f"its labels differ from those of version {before.version}"
    if require.labels == "keep":
        lost = _lost_labels(manifest, before)
        if lost:
            named = ", ".join(lost[:_MAX_NAMED]) + (", ..." if len(lost) > _MAX_NAMED else "")
            return (
                f"it lacks {len(lost)} of the {before.n_classes} labels of version "
                f"{before.version}: {named}"
            )
    if require.max_top1_drop_percent is not None and before.metrics is not None:
        if manifest.metrics is None:
            return f"its top-1 accuracy is unknown; that of version {before.version} is known"
        drop = before.metrics.top1_percent - manifest.metrics.top1_percent
        if drop > require.max_top1_drop_percent:
            return (
                f"top-1 accuracy is {drop:.1f} points lower than that of version {before.version}; "
                f"at most {require.max_top1_drop_percent:g} are allowed"
            )
    return None


def _lost_labels(manifest: Manifest, before: Manifest) -> list[str]:
    if manifest.labels is before.labels:  # as in a listing that shares them
        return []
    removed = compare_labels(before.labels, manifest.labels).removed
    # A class that was renamed on purpose is not lost.
    known = manifest.comparison
    renamed = known.labels_renamed if known and known.version == before.version else {}
    return [name for name in removed if name not in renamed]
