"""Which settings follow from a measured curve: the defaults, unless something is clearly better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from convserve.tuning.measuring import MIN_ROUNDS, Configuration, Sample, Samples

_LEAST_GAIN: Final = 0.03  # less is not worth a setting
_ENOUGH: Final = 0.97  # of the best rate: a smaller batch is answered sooner
_QUIET_SHARE: Final = 0.75  # of a core, that a lane must have had for anything to be concluded


@dataclass(frozen=True, slots=True)
class Gain:
    """Images/s of one configuration relative to another, over the rounds that both have.

    Attributes:
        median: 0.1 for 10 % more.
        least: in the worst round.
        spread: half of the range over the rounds.
        rounds: that were compared.
    """

    median: float
    least: float
    spread: float
    rounds: int

    @property
    def is_clear(self) -> bool:
        # Of a dozen rivals that are no better, one passes in 5 % of all measurements with 6 rounds
        # and in 1 % with 9 (simulated, normal noise of 3 to 25 %); a gain of 20 % at 3 % of noise
        # always does.
        beyond_spread = self.median > max(_LEAST_GAIN, self.spread)
        return self.rounds >= MIN_ROUNDS and beyond_spread and self.least > 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration to use; where it is the default, `gain` is that of its best rival.

    Attributes:
        rival: the best of the others; None where nothing can be compared.
        core_share: of a core, that a lane with one thread had; None on a device.
    """

    configuration: Configuration
    rival: Configuration | None
    gain: Gain | None
    core_share: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether other work took so much that the default stands, whatever was measured."""
        return self.core_share is not None and self.core_share < _QUIET_SHARE


def compare(samples: Sequence[Sample], base: Sequence[Sample]) -> Gain:
    """Compares two configurations round by round; what slows a whole round down cancels out.

    Args:
        samples: in the order of the rounds, one at least.
        base: likewise; what they are relative to.
    """
    pairs = zip(samples, base, strict=False)  # an interrupted round has only some
    ratios = [one.images_per_s / other.images_per_s for one, other in pairs]
    return Gain(median(ratios) - 1, min(ratios) - 1, (max(ratios) - min(ratios)) / 2, len(ratios))


def choose(samples: Samples, default: Configuration, *, on_cores: bool = True) -> Choice:
    """Returns the default, or what beats it by more than the spread over the rounds.

    Of several, the one with the smallest batches that is nearly as fast as the best: batches make
    pictures wait for each other. The default's lanes are preferred likewise.

    Args:
        samples: what was measured.
        default: the configuration without any settings.
        on_cores: runs take the cores' time, so that a lane that had little of it was disturbed.
    """
    base = samples.get(default, [])
    # No setting gives runs beside others more threads; such configurations are only shown.
    rivals = [one for one in samples if one != default and one.threads == default.threads]
    rivals = [one for one in rivals if samples[one]]
    if not base or not rivals:
        return Choice(default, None, None)
    share = _core_share(samples) if on_cores else None
    gains = {one: compare(samples[one], base) for one in rivals}
    clear = [one for one in rivals if gains[one].is_clear]
    rival = max(clear or rivals, key=lambda one: gains[one].median)
    stay = Choice(default, rival, gains[rival], share)
    if not clear or stay.is_busy:
        return stay

    enough = _ENOUGH * (1 + gains[rival].median)
    best = min(
        (one for one in clear if 1 + gains[one].median >= enough),
        key=lambda one: (
            one.lanes != default.lanes,
            one.batch_size,
        ),
    )
    return Choice(best, best, gains[best], share)


def _core_share(samples: Samples) -> float:
    # A lane with one thread is at work all the time, so what it lacks was taken by something else.
    return median(
        one.cpu_ms * one.images_per_s / 1e3 / configuration.lanes
        for configuration, rounds in samples.items()
        for one in rounds
        if configuration.threads == 1
    )


def changed_settings(chosen: Configuration, default: Configuration) -> dict[str, int]:
    """Returns the settings of `convserve serve` to set, by field name; empty for the default."""
    ours = {
        "max_batch_size": (chosen.batch_size, default.batch_size),
        "lanes": (chosen.lanes, default.lanes),
    }
    return {name: value for name, (value, usual) in ours.items() if value != usual}
