"""Finds the weights in what a training script saved: optimizer, epoch and averages lie beside them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor

from training.errors import WeightsRefused

log = logging.getLogger(__name__)

KEY_FLAG: Final = "--weights-key KEY (fit: --set network.weights_key=KEY)"

# An average of the weights over training, as timm, torchvision and others save it beside them.
_AVERAGED: Final = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
# Lightning's WeightAveraging puts the average under state_dict and the last step's weights here.
_LAST_STEP: Final = "current_model_state"
_SMALL: Final = 0.25  # fewer tensors than this share of the largest set are no network
_MAX_NAMES: Final = 8


class Chosen(NamedTuple):
    """Named entries of a checkpoint, and the dotted key that leads to them, "" at the top."""

    key: str
    entries: Mapping[Any, object]


def choose(content: object, key: str | None, file: str) -> Chosen:
    """Returns the one set of named tensors in a checkpoint.

    Args:
        content: what was loaded.
        key: where it is, with a dot between nested keys or before a prefix of names; None finds it.
        file: for messages.

    Raises:
        WeightsRefused: there is none, or there are several and no key chooses.
    """
    if not isinstance(content, Mapping) or not content:
        raise WeightsRefused(f"{file}: holds no tensors by name")
    if key:
        return Chosen(key, _at(content, key, file))

    found = _candidates(content)
    if not found:
        raise WeightsRefused(f"{file}: holds no tensors by name; its keys are {_listed(content)}")
    name = next(iter(found)) if len(found) == 1 else preferred(found)
    if name is None:
        raise WeightsRefused(f"{file}: has weights under {_listed(found)}; choose with {KEY_FLAG}")
    if len(found) > 1:
        log.info("%s has weights under %s: %s is taken", file, _listed(found), name)
    return Chosen(name, found[name])


def preferred(names: Iterable[str]) -> str | None:
    """Returns the name that tools agree on: the average of two, one of which is an average."""
    both = list(names)
    if len(both) != 2:
        return None
    if _LAST_STEP in both:
        return next(name for name in both if name != _LAST_STEP)
    averaged = [name for name in both if _AVERAGED.search(name)]
    return averaged[0] if len(averaged) == 1 else None


def _candidates(content: Mapping[Any, object]) -> dict[str, Mapping[Any, object]]:
    sets = {key: value for key, value in _mappings(content) if _n_tensors(value)}
    if not sets and _n_tensors(content):
        return {"": content}
    if not sets:
        sets = {
            f"{outer}.{inner}": value
            for outer, between in _mappings(content)
            for inner, value in _mappings(between)
            if _n_tensors(value)
        }
    largest = max(map(_n_tensors, sets.values()), default=0)
    return {key: value for key, value in sets.items() if _n_tensors(value) >= _SMALL * largest}


def _mappings(content: Mapping[Any, object]) -> Iterable[tuple[str, Mapping[Any, object]]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield key, value


def _n_tensors(entries: Mapping[Any, object]) -> int:
    # An optimizer's state has numbers as keys.
    if not all(isinstance(name, str) for name in entries):
        return 0
    return sum(isinstance(value, Tensor) for value in entries.values())


def _at(content: Mapping[Any, object], key: str, file: str) -> Mapping[Any, object]:
    inside, rest = content, key
    while True:
        mappings = dict(_mappings(inside))
        if rest in mappings:
            return mappings[rest]
        outer = [name for name in mappings if rest.startswith(f"{name}.")]
        if not outer:
            break
        longest = max(outer, key=len)
        inside, rest = mappings[longest], rest.removeprefix(f"{longest}.")

    start = f"{rest}."
    below = {
        name.removeprefix(start): value
        for name, value in inside.items()
        if isinstance(name, str) and name.startswith(start)
    }
    if not below:
        raise WeightsRefused(f"{file}: has no {key}; its keys are {_listed(content)}")
    return below


def _listed(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    more = f" and {len(texts) - _MAX_NAMES} more" if len(texts) > _MAX_NAMES else ""
    return ", ".join(texts[:_MAX_NAMES]) + more
