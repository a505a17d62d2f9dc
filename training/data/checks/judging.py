"""From facts about pictures to findings: what stops training, what deserves a look, what is noted.

The limits here are rules of thumb, not laws, so nothing but a missing class or split stops a run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from training.config.config import Data
from training.data.checks.cleaning import LEAK, TWO_LABELS, UNREADABLE, ExaminedPictures, groups
from training.data.checks.findings import Finding, Findings
from training.data.checks.judging_pictures import judge_pictures
from training.data.samples import SPLITS
from training.data.sources.folders import NOT_A_PICTURE

FEW_PICTURES: Final = 10
IMBALANCE: Final = 10.0
MANY_LEFT_OUT: Final = 0.2

_ORDER: Final = {"stop": 0, "warning": 1, "note": 2}
_HARMLESS: Final = frozenset({NOT_A_PICTURE, "listed twice"})


def judge(examined: ExaminedPictures, config: Data, input_size_px: int | None = None) -> Findings:
    """Returns all findings about examined pictures, the gravest first."""
    labels = tuple(label.name for label in examined.found.labels)
    counts = {split: _count(examined, split) for split in SPLITS}
    findings = [
        *_judge_classes(examined, labels, counts),
        *_judge_balance(labels, counts),
        *_judge_names(examined, labels),
        *_judge_reading(examined),
        *_judge_duplicates(examined, config),
        *judge_pictures(examined, input_size_px),
        *_judge_use(examined, counts, config),
    ]
    findings.sort(key=lambda one: _ORDER[one.severity])
    return Findings(examined.found.name, labels, counts, tuple(findings))


def _count(examined: ExaminedPictures, split: str) -> tuple[int, ...]:
    counter = Counter(sample.index for sample in examined.used(split))
    return tuple(counter[index] for index in range(len(examined.found.labels)))


def _judge_classes(
    examined: ExaminedPictures, labels: Sequence[str], counts: dict[str, tuple[int, ...]]
) -> Iterator[Finding]:
    if not examined.found.samples:
        yield Finding("stop", "no_pictures", "there are no pictures", "check the path")
        return
    missing = [index for index, n in enumerate(counts["train"]) if not n]
    if missing:
        yield Finding(
            "stop",
            "class_without_training_pictures",
            f"{_n(len(missing), 'class', 'classes')} without a training picture",
            "add training pictures, or delete the class from all splits",
            tuple((labels[index], _why_missing(examined, index)) for index in missing),
        )
    if len(labels) - len(missing) < 2:
        yield Finding(
            "stop",
            "too_few_classes",
            f"{_n(len(labels) - len(missing), 'class', 'classes')} with training pictures",
            "a classifier needs two classes at least",
        )
    for split in ("validation", "test"):
        if not any(counts[split]):
            yield Finding(
                "stop",
                f"no_{split}_pictures",
                f"no {split} pictures",
                f"add pictures to {split}, or delete that folder to have it cut from train",
            )
            continue
        absent = [i for i, n in enumerate(counts[split]) if not n and counts["train"][i]]
        if absent:
            yield Finding(
                "warning",
                f"class_missing_in_{split}",
                f"{_n(len(absent), 'class', 'classes')} without a {split} picture",
                "nothing will be known about its accuracy" if split == "test" else "",
                tuple((labels[index],) for index in absent),
            )


def _why_missing(examined: ExaminedPictures, index: int) -> str:
    """Says why a class has no training picture, from its pictures in the source."""
    own = [i for i, sample in enumerate(examined.found.samples) if sample.index == index]
    if not own:
        return "no pictures at all"
    trained = [i for i in own if examined.found.source_splits[i] == "train"]
    if not trained:
        where = sorted({examined.found.source_splits[i] for i in own})
        return f"pictures in {' and '.join(where)} only"
    reasons = Counter(examined.left_out.get(i, "in use elsewhere") for i in trained)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _judge_balance(labels: Sequence[str], counts: dict[str, tuple[int, ...]]) -> Iterator[Finding]:
    trained = [(n, label) for n, label in zip(counts["train"], labels, strict=True) if n]
    few = [(n, label) for n, label in trained if n < FEW_PICTURES]
    if few:
        yield Finding(
            "warning",
            "few_pictures",
            f"{_n(len(few), 'class', 'classes')} with fewer than {FEW_PICTURES} training pictures",
            "collect more; a few dozen for each class is a start",
            tuple((label, str(n)) for n, label in sorted(few)),
        )
    if not trained:
        return
    (least, rarest), (most, commonest) = min(trained), max(trained)
    balance = f"{most} training pictures of {commonest}, {least} of {rarest}"
    if most > IMBALANCE * least:
        yield Finding(
            "warning",
            "imbalance",
            f"the classes are unbalanced: {balance}",
            'data.sampling = "balanced" or loop.class_weights = true weighs the rare ones up',
        )
    else:
        yield Finding("note", "balance", balance)


def _judge_names(examined: ExaminedPictures, labels: Sequence[str]) -> Iterator[Finding]:
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[" ".join(label.casefold().replace("_", " ").replace("-", " ").split())].append(label)
    same = tuple(tuple(names) for names in alike.values() if len(names) > 1)
    if same:
        yield Finding(
            "warning",
            "labels_alike",
            f"{_n(len(same), 'label')} written in more than one way",
            "each spelling is a class of its own; rename them if they mean the same",
            same,
            joiner=" / ",
        )
    if examined.found.merged:
        yield Finding(
            "warning",
            "labels_merged",
            f"{len(examined.found.merged)} names that differ in spaces only, taken as one label",
            items=tuple((repr(name),) for name in examined.found.merged),
        )


def _judge_reading(examined: ExaminedPictures) -> Iterator[Finding]:
    bad = tuple(
        (sample.name, one.error)
        for sample, one in zip(examined.found.samples, examined.facts, strict=True)
        if one.error is not None
    )
    if bad:
        yield Finding(
            "warning",
            "unreadable",
            f"{_n(len(bad), 'picture')} that cannot be read",
            "left out; delete or replace these files",
            bad,
        )
    if examined.found.empty:
        yield Finding(
            "warning",
            "empty_folders",
            f"{_n(len(examined.found.empty), 'class folder')} without a picture",
            items=tuple((name,) for name in examined.found.empty),
        )
    for reason, names in examined.found.skipped.items():
        yield Finding(
            "note" if reason in _HARMLESS else "warning",
            "skipped",
            f"{len(names)} skipped: {reason}",
            items=tuple((name,) for name in names),
        )


def _judge_duplicates(examined: ExaminedPictures, config: Data) -> Iterator[Finding]:
    names = [sample.name for sample in examined.found.samples]
    splits = examined.found.source_splits
    digests = examined.duplicates.exact.tolist()
    exact = list(groups(digests))
    near = [
        group
        for group in groups(examined.duplicates.near.tolist())
        if len({digests[position] for position in group}) > 1
    ]
    done = {
        "drop": "left out of train, or of validation, so that the test pictures stay whole",
        "keep": 'kept, as data.leaks = "keep" says; accuracy will read too high',
        "stop": 'data.leaks = "drop" would leave them out of train, or of validation',
    }[config.leaks]
    for code, kind, joiner, found in (
        ("exact", "the same picture", " = ", exact),
        ("near", "nearly the same picture", " ~ ", near),
    ):
        across = [group for group in found if len({splits[i] for i in group}) > 1]
        within = [group for group in found if len({splits[i] for i in group}) == 1]
        if across:
            message = f"{_n(len(across), 'time')} {kind} in more than one split"
            items = _named(across, names)
            yield Finding("warning", f"{code}_across", message, done, items, joiner)
        if within:
            message = f"{_n(len(within), 'time')} {kind} within a split"
            advice = "kept; where the source is not split, they stay on one side"
            items = _named(within, names)
            yield Finding("warning", f"{code}_within", message, advice, items, joiner)
    yield from _judge_labels_of_copies(examined, [*exact, *near])


def _judge_labels_of_copies(
    examined: ExaminedPictures, copies: Sequence[tuple[int, ...]]
) -> Iterator[Finding]:
    samples, labels = examined.found.samples, examined.found.labels
    torn = {
        group: tuple(f"{samples[i].name} ({labels[samples[i].index].name})" for i in group)
        for group in copies
        if len({samples[i].index for i in group}) > 1
    }
    if not torn:
        return
    dropped = sum(reason == TWO_LABELS for reason in examined.left_out.values())
    advice = "correct the labels"
    if dropped:
        advice += f"; {_n(dropped, 'training picture')} with equal pixels left out until then"
    yield Finding(
        "warning",
        "two_labels",
        f"{_n(len(torn), 'time')} the same or nearly the same picture under two labels",
        advice,
        tuple(torn.values()),
        joiner=" | ",
    )


def _named(found: Sequence[tuple[int, ...]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names[position] for position in group) for group in found)


def _judge_use(
    examined: ExaminedPictures, counts: dict[str, tuple[int, ...]], config: Data
) -> Iterator[Finding]:
    missing = [s for s in ("validation", "test") if s not in examined.found.given_splits]
    cut = [f"{sum(counts[split])} for {split}" for split in missing]
    if cut:
        yield Finding(
            "note",
            "cut",
            f"{' and '.join(cut)} cut from the training pictures, seed {config.split_seed}",
        )
    reasons = Counter(examined.left_out.values())
    for reason, count in sorted(reasons.items()):
        if reason != UNREADABLE:
            names = (
                examined.found.samples[i].name
                for i, why in examined.left_out.items()
                if why == reason
            )
            items = tuple((name,) for name in sorted(names))
            yield Finding("note", "left_out", f"{count} left out: {reason}", items=items)
    n_trained = sum(counts["train"])
    if reasons[LEAK] > MANY_LEFT_OUT * (n_trained + reasons[LEAK]):
        yield Finding(
            "warning",
            "many_left_out",
            f"{reasons[LEAK]} of {n_trained + reasons[LEAK]} pictures repeat later splits",
            'if they only look alike, as from a fixed camera, set data.leaks = "keep"',
        )


def _n(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
