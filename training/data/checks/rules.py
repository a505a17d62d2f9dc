"""Rules that turn facts about pictures into findings.

The limits are rules of thumb, so only a missing class or an empty split stops a run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Final

from contract.images import SUFFIXES
from training.config.config import Data
from training.data.checks.findings import Finding, Findings, counted
from training.data.checks.picture_rules import check_pictures
from training.data.checks.selection import LEAK, TWO_LABELS, UNREADABLE, Selection, groups
from training.data.samples import SPLITS
from training.data.sources.catalogue import SourceContents
from training.data.sources.folders import LINKED_FOLDER, NOT_A_PICTURE

FEW_PICTURES: Final = 10  # of a class, to train on
IMBALANCE: Final = 10.0  # the largest class to the smallest
MANY_LEFT_OUT: Final = 0.2  # share of the pictures that leaks take away

_ORDER: Final = {"stop": 0, "warning": 1, "note": 2}
_HARMLESS: Final = frozenset({NOT_A_PICTURE, "listed twice"})  # reasons to skip

# What to do, by the reason to skip. The keys are the reasons that the sources report.
SKIP_ADVICE: Final = {
    NOT_A_PICTURE: f"no action needed; picture files end in {', '.join(SUFFIXES)}",
    LINKED_FOLDER: "links to folders are not followed; copy the folder here",
    "a link out of the folder": "links out of the folder are not followed; copy the picture here",
    "a link to nothing": "delete the link or restore the picture it points to",
    "a picture outside the class folders": "move each picture into the folder of its class",
    "a folder beside the splits": "move its pictures into a split, or delete the folder",
    "a folder that cannot be read": "make the folder readable for this user",
    "a line without path or label": "add what is missing, or delete the line",
    "listed twice": "the first line counts; delete the others",
    "no such file": "correct the path or delete the line; paths start at the list's folder",
}


def find_problems(selection: Selection, config: Data, input_size_px: int | None = None) -> Findings:
    """Applies all rules and returns the findings, the most severe first."""
    labels = tuple(label.name for label in selection.source.labels)
    counts = {split: _counts(selection, split) for split in SPLITS}
    findings = [
        *_check_classes(selection, labels, counts),
        *_check_balance(labels, counts),
        *_check_labels(selection, labels),
        *_check_files(selection),
        *_check_duplicates(selection, config),
        *check_pictures(selection, input_size_px),
        *_check_splits(selection, counts, config),
    ]
    findings.sort(key=lambda one: _ORDER[one.severity])
    return Findings(selection.source.name, labels, counts, tuple(findings))


def _counts(selection: Selection, split: str) -> tuple[int, ...]:
    counter = Counter(sample.index for sample in selection.samples_of(split))
    return tuple(counter[index] for index in range(len(selection.source.labels)))


def _check_classes(
    selection: Selection, labels: Sequence[str], counts: dict[str, tuple[int, ...]]
) -> Iterator[Finding]:
    if not selection.source.samples:
        yield _no_pictures(selection.source)
        return
    if _none_readable(selection):  # the finding about the files says why
        return

    missing = [index for index, n in enumerate(counts["train"]) if not n]
    if missing:
        yield Finding(
            "stop",
            "class_without_training_pictures",
            f"no training pictures in {_classes(len(missing))}",
            "add training pictures, or delete the class from all splits",
            tuple((labels[index], _why_untrained(selection, index)) for index in missing),
        )
    if len(labels) - len(missing) < 2:
        yield Finding(
            "stop",
            "too_few_classes",
            f"training pictures in only {_classes(len(labels) - len(missing))}",
            _deeper(selection.source)
            or "a classifier needs at least two classes; add pictures of another class",
        )

    for split in ("validation", "test"):
        if not any(counts[split]):
            yield Finding(
                "stop",
                f"no_{split}_pictures",
                f"no {split} pictures",
                f"add {split} pictures, or delete the {split} split to have it cut from the "
                "training pictures"
                if split in selection.source.given_splits
                else "too few training pictures to cut them from; add pictures",
            )
            continue
        absent = [i for i, n in enumerate(counts[split]) if not n and counts["train"][i]]
        if absent:
            yield Finding(
                "warning",
                f"class_missing_in_{split}",
                f"no {split} pictures in {_classes(len(absent))}",
                f"add {split} pictures"
                + (", or the accuracy of these classes stays unknown" if split == "test" else ""),
                tuple((labels[index],) for index in absent),
            )


def _no_pictures(source: SourceContents) -> Finding:
    skipped = tuple((name, reason) for reason, names in source.skipped.items() for name in names)
    if not skipped:
        return Finding("stop", "no_pictures", "no pictures found", "check the path")
    commonest = max(source.skipped, key=lambda reason: len(source.skipped[reason]))
    return Finding("stop", "no_pictures", "no pictures found", SKIP_ADVICE[commonest], skipped)


def _none_readable(selection: Selection) -> bool:
    return all(one.error is not None for one in selection.facts)


def _deeper(source: SourceContents) -> str | None:
    """Where the classes may be, if all pictures are in folders of one class folder."""
    folders = [PurePosixPath(sample.name).parts[:-1] for sample in source.samples]
    levels = zip(*folders, strict=False)
    common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    below = sorted({parts[len(common)] for parts in folders if len(parts) > len(common)})
    if len(source.labels) > 1 or common[:1] != [source.labels[0].name] or len(below) < 2:
        return None
    names = ", ".join(below[:3]) + (", ..." if len(below) > 3 else "")
    where = "/".join((source.name, *common))
    return f"if the classes are the {len(below)} folders in {where} ({names}), give {where}"


def _why_untrained(selection: Selection, index: int) -> str:
    source = selection.source
    own = [i for i, sample in enumerate(source.samples) if sample.index == index]
    if not own:
        return "no pictures at all"
    trained = [i for i in own if source.source_splits[i] == "train"]
    if not trained:
        where = sorted({source.source_splits[i] for i in own})
        return f"pictures in {' and '.join(where)} only"

    # Pictures that were not left out were cut off for another split.
    reasons = Counter(selection.left_out.get(i, "used in another split") for i in trained)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _check_balance(labels: Sequence[str], counts: dict[str, tuple[int, ...]]) -> Iterator[Finding]:
    trained = [(n, label) for n, label in zip(counts["train"], labels, strict=True) if n]
    few = [(n, label) for n, label in trained if n < FEW_PICTURES]
    if few:
        yield Finding(
            "warning",
            "few_pictures",
            f"fewer than {FEW_PICTURES} training pictures in {_classes(len(few))}",
            "collect more; a few dozen per class is a start",
            tuple((label, str(n)) for n, label in sorted(few)),
        )
    if not trained:
        return

    (least, rarest), (most, commonest) = min(trained), max(trained)
    if least == most:
        if len(trained) > 1:
            yield Finding("note", "balance", f"{most} training pictures of each class")
        return
    balance = f"{most} training pictures of {commonest}, {least} of {rarest}"
    if most > IMBALANCE * least:
        yield Finding(
            "warning",
            "imbalance",
            f"the classes are unbalanced: {balance}",
            'set data.sampling = "balanced" or loop.class_weights = true to give rare classes '
            "more weight",
        )
    else:
        yield Finding("note", "balance", balance)


def _check_labels(selection: Selection, labels: Sequence[str]) -> Iterator[Finding]:
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        words = label.casefold().replace("_", " ").replace("-", " ").split()
        spellings[" ".join(words)].append(label)
    alike = tuple(tuple(names) for names in spellings.values() if len(names) > 1)
    if alike:
        yield Finding(
            "warning",
            "labels_alike",
            f"{counted(len(alike), 'label')} spelt in more than one way",
            "each spelling is a class of its own; rename them if they mean the same",
            alike,
            joiner=" / ",
        )

    merged = selection.source.merged
    if merged:
        yield Finding(
            "warning",
            "labels_merged",
            f"{len(merged)} label names differ only in spaces around them; merged",
            "rename them if they mean different classes",
            items=tuple((repr(name),) for name in merged),
        )


def _check_files(selection: Selection) -> Iterator[Finding]:
    source = selection.source
    unreadable = tuple(
        (sample.name, one.error)
        for sample, one in zip(source.samples, selection.facts, strict=True)
        if one.error is not None
    )
    if unreadable and _none_readable(selection):
        yield Finding(
            "stop",
            "none_readable",
            f"none of the {counted(len(unreadable), 'picture')} can be read",
            "give files that an image viewer can open",
            unreadable,
        )
    elif unreadable:
        yield Finding(
            "warning",
            "unreadable",
            f"{counted(len(unreadable), 'picture')} cannot be read",
            "left out; delete or replace these files",
            unreadable,
        )
    if source.empty:
        yield Finding(
            "warning",
            "empty_folders",
            f"no pictures in {counted(len(source.empty), 'class folder')}",
            "add pictures or delete the folders",
            items=tuple((name,) for name in source.empty),
        )
    # Without a picture, the stop lists what was skipped.
    for reason, names in source.skipped.items() if source.samples else ():
        yield Finding(
            "note" if reason in _HARMLESS else "warning",
            "skipped",
            f"{len(names)} skipped: {reason}",
            SKIP_ADVICE[reason],
            items=tuple((name,) for name in names),
        )


def _check_duplicates(selection: Selection, config: Data) -> Iterator[Finding]:
    names = [sample.name for sample in selection.source.samples]
    splits = selection.source.source_splits

    digests = selection.duplicates.exact.tolist()
    exact = list(groups(digests))
    near = [
        group
        for group in groups(selection.duplicates.near.tolist())
        if len({digests[position] for position in group}) > 1  # else it is among the exact ones
    ]
    advice_across = {
        "drop": "the copies in the earlier split are left out, so that no test picture is lost",
        "keep": 'kept because data.leaks is "keep"; the measured accuracy will be too high',
        "stop": 'delete the copies, or set data.leaks = "drop" to leave out those in the earlier '
        "split",
    }[config.leaks]
    advice_within = "kept; copies stay together when the source is split here"

    for code, joiner, found in (("exact", " = ", exact), ("near", " ~ ", near)):
        across = [group for group in found if len({splits[i] for i in group}) > 1]
        within = [group for group in found if len({splits[i] for i in group}) == 1]
        for place, where, advice, copies in (
            ("across", "another split", advice_across, across),
            ("within", "the same split", advice_within, within),
        ):
            if copies:
                yield Finding(
                    "warning",
                    f"{code}_{place}",
                    f"{counted(len(copies), 'picture')} with {code} copies in {where}",
                    advice,
                    tuple(tuple(names[position] for position in group) for group in copies),
                    joiner,
                )
    yield from _check_labels_of_copies(selection, [*exact, *near])


def _check_labels_of_copies(
    selection: Selection, copies: Sequence[tuple[int, ...]]
) -> Iterator[Finding]:
    samples, labels = selection.source.samples, selection.source.labels
    conflicts = {  # a dict, because a group may be exact and near
        group: tuple(f"{samples[i].name} ({labels[samples[i].index].name})" for i in group)
        for group in copies
        if len({samples[i].index for i in group}) > 1
    }
    if not conflicts:
        return

    advice = "correct the labels"
    dropped = sum(reason == TWO_LABELS for reason in selection.left_out.values())
    if dropped:
        advice += f"; until then, {dropped} training pictures with equal pixels are left out"
    yield Finding(
        "warning",
        "two_labels",
        f"{counted(len(conflicts), 'picture')} with exact or near copies under another label",
        advice,
        tuple(conflicts.values()),
        joiner=" | ",
    )


def _check_splits(
    selection: Selection, counts: dict[str, tuple[int, ...]], config: Data
) -> Iterator[Finding]:
    missing = [s for s in ("validation", "test") if s not in selection.source.given_splits]
    cut = [f"{sum(counts[split])} for {split}" for split in missing]
    if cut and any(counts["train"]):
        yield Finding(
            "note",
            "cut",
            f"{' and '.join(cut)} cut from the training pictures (seed {config.split_seed})",
        )

    reasons = Counter(selection.left_out.values())
    for reason, count in sorted(reasons.items()):
        if reason != UNREADABLE:  # a finding of its own already
            names = (
                selection.source.samples[i].name
                for i, why in selection.left_out.items()
                if why == reason
            )
            items = tuple((name,) for name in sorted(names))
            yield Finding("note", "left_out", f"{count} left out: {reason}", items=items)

    n_leaks, n_trained = reasons[LEAK], sum(counts["train"])
    if n_leaks > MANY_LEFT_OUT * (n_trained + n_leaks):
        yield Finding(
            "warning",
            "many_left_out",
            f"{n_leaks} of {n_trained + n_leaks} pictures left out because a later split repeats "
            "them",
            'if they only look alike, as pictures of a fixed camera do, set data.leaks = "keep"',
        )


def _classes(count: int) -> str:
    return counted(count, "class", "classes")
