"""Reads a data set, checks it, and leaves out what must not be trained on.

Every picture is decoded once. Unreadable files and pictures that would leak from a later split into
an earlier one are left out; the findings list them all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from training.config.config import Data
from training.data.checks.duplicates import MIN_SIDE_PX, Duplicates, Progress, find_duplicates
from training.data.checks.facts import PictureFacts, read_facts, thumbnails
from training.data.checks.findings import LEAK_CODES, Finding, Findings, counted
from training.data.checks.rules import find_problems
from training.data.checks.selection import Selection, select
from training.data.checks.similarity import THUMBNAIL_PX
from training.data.samples import DataSet
from training.data.sources.find import find
from training.errors import DataRefused

log = logging.getLogger(__name__)

_LOG_EVERY: Final = 1000  # pictures; of large sets, every tenth of the set


def load_data(
    source: str,
    config: Data,
    *,
    cache_dir: Path,
    input_size_px: int | None = None,
) -> tuple[DataSet, Findings]:
    """Returns the pictures to train on, and the findings of the check.

    Args:
        source: a folder, a `.csv` list, `digits` or `torchvision:NAME`.
        config: how to split, and what to do about duplicates across splits.
        cache_dir: keeps torchvision's downloads.
        input_size_px: side of the network's input; smaller pictures are reported.

    Raises:
        DataRefused: the source cannot be read or trained on, or it has duplicates across splits
            and `config.leaks` is "stop".
    """
    selection = _read(source, config, cache_dir)
    findings = find_problems(selection, config, input_size_px)
    _refuse_stops(findings, config)

    dataset = DataSet(
        name=selection.source.name,
        labels=selection.source.labels,
        train=selection.samples_of("train"),
        validation=selection.samples_of("validation"),
        test=selection.samples_of("test"),
        license=selection.source.license,
    )
    return dataset, findings


def check_data(source: str, config: Data, *, cache_dir: Path) -> Findings:
    """Returns the findings only, also for data that `load_data` refuses.

    Raises:
        DataRefused: the source cannot be read.
    """
    return find_problems(_read(source, config, cache_dir), config)


def _read(source: str, config: Data, cache_dir: Path) -> Selection:
    contents = find(source, cache_dir=cache_dir)
    n_pictures, n_classes = len(contents.samples), len(contents.labels)
    classes = counted(n_classes, "class", "classes")
    log.info("%s: %s of %s", contents.name, counted(n_pictures, "picture"), classes)

    facts = read_facts(contents.samples, _log_progress("decoded"))
    duplicates = _compare(facts, _log_progress("compared"))
    return select(contents, facts, duplicates, config)


def _compare(facts: Sequence[PictureFacts], progress: Progress) -> Duplicates:
    # An unreadable picture gets a digest of its own, so that it is a duplicate of no other.
    blank = PictureFacts(thumbnail=bytes(THUMBNAIL_PX**2))
    return find_duplicates(
        [one.digest or f"unreadable {i}".encode() for i, one in enumerate(facts)],
        thumbnails([one if one.readable else blank for one in facts]),
        np.array([one.readable and min(one.size_px) >= MIN_SIDE_PX for one in facts], np.bool_),
        progress,
    )


def _log_progress(verb: str) -> Progress:
    last = 0

    def advance(done: int, total: int) -> None:
        nonlocal last
        if done - last >= max(_LOG_EVERY, total // 10):
            last = done
            log.info("%s %d of %d pictures", verb, done, total)

    return advance


def _refuse_stops(findings: Findings, config: Data) -> None:
    refused = list(findings.stops)
    if config.leaks == "stop":
        refused += [one for one in findings.items if one.code in LEAK_CODES]
    if refused:
        more = f" (and {len(refused) - 1} more reasons)" if len(refused) > 1 else ""
        raise DataRefused(f"{findings.name}: {_in_one_line(refused[0])}{more}")


def _in_one_line(finding: Finding) -> str:
    examples = ", ".join(finding.joiner.join(item) for item in finding.items[:3])
    text = f"{finding.message}: {examples}" if examples else finding.message
    return f"{text}; {finding.advice}" if finding.advice else text
