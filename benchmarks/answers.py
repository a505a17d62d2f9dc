"""Verifies that servers answer correctly: compares their top-5 with a run in this process."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVERS: Final = Path(__file__).parent / "servers"
# Other ways of decoding and resizing change the answer to a few uncertain pictures, not to more.
MIN_TOP1_PERCENT: Final = 97.0


class WrongAnswers(Exception):
    """A server's answers differ from the graph's, so it is not measured."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The share of photos that a server answers as the reference does."""

    n: int
    top1_percent: float  # the first class is the same
    top5_percent: float  # the five classes are the same, in any order


def reference(photos: Sequence[bytes], graph: Path, manifest: Path) -> list[list[int]]:
    """Returns the class indices of each photo's top-5, with the other servers' preparation."""
    # picture.py reads the environment and the manifest when it is imported, hence the reload for
    # each graph. The servers import it from their own folder, so it is no module of this package.
    os.environ |= {"BENCH_GRAPH": str(graph), "BENCH_MANIFEST": str(manifest)}
    sys.path.insert(0, str(SERVERS))
    try:
        picture: Any = importlib.reload(importlib.import_module("picture"))
    finally:
        sys.path.remove(str(SERVERS))

    session = picture.open_session()
    found = []
    for photo in photos:
        probabilities = picture.infer(session, picture.prepare(photo)[None])[0]  # (C,)
        found.append(top5_indices(picture.top5(probabilities)))
    return found


def top5_indices(answer: Any) -> list[int]:
    """Returns the class indices of an answer in any server's envelope, or raises WrongAnswers."""
    try:
        if isinstance(answer, list):  # a batch of one
            answer = answer[0]
        if isinstance(answer, dict) and "outputs" in answer:  # the V2 protocol
            answer = {"predictions": json.loads(answer["outputs"][0]["data"][0])}
        return [int(prediction["index"]) for prediction in answer["predictions"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise WrongAnswers(f"no predictions in {str(answer)[:200]}") from error


def agreement(bodies: Mapping[int, str], expected: Sequence[Sequence[int]]) -> Agreement:
    """Compares the bodies of all answers, by photo, with the expected top-5 of each photo.

    Raises:
        WrongAnswers: an answer is missing or is not JSON, or too few agree.
    """
    missing = len(expected) - len(bodies)
    if missing:
        raise WrongAnswers(f"{missing} of {len(expected)} photos were not answered")

    top1 = top5 = 0
    for photo, correct in enumerate(expected):
        try:
            got = top5_indices(json.loads(bodies[photo]))
        except json.JSONDecodeError as error:
            raise WrongAnswers(f"not JSON: {bodies[photo][:200]}") from error
        top1 += got[0] == correct[0]
        top5 += set(got) == set(correct)

    found = Agreement(len(expected), 100 * top1 / len(expected), 100 * top5 / len(expected))
    if found.top1_percent < MIN_TOP1_PERCENT:
        raise WrongAnswers(f"the first class agrees on only {found.top1_percent:.1f}% of photos")
    return found
