"""Reads a data set and says what is wrong with it, before hours are spent on training.

Every picture is decoded once. What cannot be read, and what would let the network see its test
pictures in training, is left out; the findings name all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from training.config.config import Data
from training.data.checks.cleaning import ExaminedPictures, examine
from training.data.checks.duplicates import MIN_SIDE_PX, Duplicates, Progress, find_duplicates
from training.data.checks.findings import LEAK_CODES, Finding, Findings
from training.data.checks.inspection import PictureFacts, inspect, thumbnails
from training.data.checks.judging import judge
from training.data.checks.likeness import THUMBNAIL_PX
from training.data.samples import DataSet
from training.data.sources.find import find
from training.errors import DataRefused

log = logging.getLogger(__name__)

_LOG_EVERY: Final = 1000


def load_data(
    source: str,
    config: Data,
    *,
    cache_dir: Path,
    input_size_px: int | None = None,
) -> tuple[DataSet, Findings]:
    """Returns pictures that can be trained on, and what was found on the way.

    Args:
        source: a folder, a `.csv` list, `digits` or `torchvision:NAME`; see `training.data.sources.find`.
        config: how to split and what to do about duplicates across splits.
        cache_dir: keeps what torchvision downloads.
        input_size_px: side of the network's input, to name pictures that are smaller.

    Raises:
        DataRefused: the source cannot be understood or trained on, or it has duplicates across
            splits and the config says to stop then.
    """
    examined = _examined(source, config, cache_dir)
    findings = judge(examined, config, input_size_px)
    _refuse(findings, config)
    dataset = DataSet(
        name=examined.found.name,
        labels=examined.found.labels,
        train=examined.used("train"),
        validation=examined.used("validation"),
        test=examined.used("test"),
        license=examined.found.license,
    )
    return dataset, findings


def inspect_data(source: str, config: Data, *, cache_dir: Path) -> Findings:
    """Returns what `load_data` would find, also where that refuses the pictures.

    Raises:
        DataRefused: the source cannot be understood.
    """
    return judge(_examined(source, config, cache_dir), config)


def _examined(source: str, config: Data, cache_dir: Path) -> ExaminedPictures:
    found = find(source, cache_dir=cache_dir)
    log.info("%s: %d pictures of %d classes", found.name, len(found.samples), len(found.labels))
    facts = inspect(found.samples, _progress("decoded"))
    duplicates = _duplicates(facts, _progress("compared"))
    return examine(found, facts, duplicates, config)


def _duplicates(facts: Sequence[PictureFacts], progress: Progress) -> Duplicates:
    """Compares pictures; those that cannot be read are like no other."""
    blank = PictureFacts(thumbnail=bytes(THUMBNAIL_PX**2))
    return find_duplicates(
        [one.digest or f"unreadable {i}".encode() for i, one in enumerate(facts)],
        thumbnails([one if one.readable else blank for one in facts]),
        np.array([one.readable and min(one.size_px) >= MIN_SIDE_PX for one in facts], np.bool_),
        progress,
    )


def _progress(verb: str) -> Progress:
    """Returns a progress callback that logs now and then, and nothing of small sets."""
    last = 0

    def advance(done: int, total: int) -> None:
        nonlocal last
        if done - last >= max(_LOG_EVERY, total // 10):
            last = done
            log.info("%s %d of %d pictures", verb, done, total)

    return advance


def _refuse(findings: Findings, config: Data) -> None:
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
