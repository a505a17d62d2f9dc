"""Random changes of training pictures, each a pure function of the picture and a seed.

torchvision's transforms and timm's mixing draw from global generators; they are seeded for the call
and put back, so nothing else in the process notices.

Shapes: B pictures of a batch, S = crop size in pixels, C classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contract.images import decode
from contract.manifest import Preprocessing
from contract.preprocessing import resize_and_crop
from training.config import config
from training.data.batches import Seed, to_tensor
from training.system.randomness import numpy_seeded, seed_of, torch_seeded
from training.system.torch_compat import prepare_torchvision, timm_data

_WHOLE: Final = (1.0, 1.0)


class Augmentation:
    """Turns a picture into pixels to train on: crop, mirror, affine, RandAugment, colour, erasing.

    Where the crop keeps the whole picture (`crop_scale` of 1), it is the evaluation geometry. What
    a rotation or a shift uncovers is filled with the median colour of the picture's border: digits
    on black stay on black and clothes on white stay on white, where the usual grey or black corners
    would be shapes of their own. An erased rectangle gets the network's mean colour, which is zero
    after normalisation.

    Args:
        changes: which changes, and how strong.
        spec: the network's evaluation preprocessing.
    """

    def __init__(self, changes: config.Augment, spec: Preprocessing) -> None:
        self.spec = spec
        self._changes = changes

    def __call__(self, data: bytes, seed: Seed) -> Tensor:
        """Decodes and changes one picture; see `change`.

        Raises:
            ImageError: the file is not an acceptable picture.
        """
        return self.change(decode(data), seed)

    def change(self, image: Image.Image, seed: Seed) -> Tensor:
        """Changes one picture.

        Args:
            image: mode RGB, any size; it stays as it is.
            seed: such as the run's seed, the epoch and the position in it.

        Returns:
            uint8, shape (3, S, S), 0..255.
        """
        with torch_seeded(seed_of("augment", *seed)):
            image = self._move(self._mirror(self._crop(image)))
            pixels = to_tensor(np.asarray(self._recolour(image)))
            return self._erase(pixels)

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process must prepare torchvision before it unpickles anything of it.
        return type(self), (self._changes, self.spec)

    @cached_property
    def _v2(self) -> Any:
        prepare_torchvision()
        from torchvision.transforms import v2

        return v2

    @cached_property
    def _random_crop(self) -> Any:
        return self._v2.RandomResizedCrop(
            self.spec.crop_size_px,
            self._changes.crop_scale,
            self._changes.crop_ratio,
            interpolation=self._interpolation,
        )

    @cached_property
    def _affine(self) -> Any:
        shift = self._changes.translate
        return self._v2.RandomAffine(
            self._changes.rotate_degrees, translate=(shift, shift), scale=self._changes.zoom
        )

    @cached_property
    def _jitter(self) -> Any:
        strength = self._changes.color_jitter
        return self._v2.ColorJitter(strength, strength, strength)

    @cached_property
    def _eraser(self) -> Any:
        mean = [round(255 * value) for value in self.spec.mean]
        return self._v2.RandomErasing(self._changes.erasing, value=mean)

    @property
    def _interpolation(self) -> Any:
        return self._v2.InterpolationMode(self.spec.interpolation)

    @property
    def _moving_interpolation(self) -> Any:
        # Pillow moves pixels bicubically at three times the price, and not at all by Lanczos.
        modes = self._v2.InterpolationMode
        return modes.NEAREST if self.spec.interpolation == "nearest" else modes.BILINEAR

    def _crop(self, image: Image.Image) -> Image.Image:
        if self._changes.crop_scale == _WHOLE:
            return Image.fromarray(resize_and_crop(image, self.spec))
        cropped: Image.Image = self._random_crop(image)
        return cropped

    def _mirror(self, image: Image.Image) -> Image.Image:
        if torch.rand(()).item() >= self._changes.flip:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def _move(self, image: Image.Image) -> Image.Image:
        changes = self._changes
        if changes.rotate_degrees == 0 and changes.translate == 0 and changes.zoom == _WHOLE:
            return image
        moved: Image.Image = self._v2.functional.affine(
            image,
            **self._affine.make_params([image]),
            interpolation=self._moving_interpolation,
            fill=border_colour(image),
        )
        return moved

    def _recolour(self, image: Image.Image) -> Image.Image:
        if self._changes.rand_augment_operations:
            image = self._v2.RandAugment(
                self._changes.rand_augment_operations,
                self._changes.rand_augment_magnitude,
                interpolation=self._moving_interpolation,
                fill=border_colour(image),
            )(image)
        if self._changes.color_jitter:
            image = self._jitter(image)
        return image

    def _erase(self, pixels: Tensor) -> Tensor:
        if not self._changes.erasing:
            return pixels
        erased: Tensor = self._eraser(pixels)
        return erased


def border_colour(image: Image.Image) -> list[int]:
    """Returns the median colour of the outermost pixels of a picture of mode RGB, 0..255 each."""
    pixels = np.asarray(image)  # (H, W, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    middle = len(border) // 2
    return [int(value) for value in np.partition(border, middle, axis=0)[middle]]


def mixes(changes: config.Augment) -> bool:
    """Says whether batches are mixed."""
    return changes.mixup > 0 or changes.cutmix > 0


def mix(
    images: Tensor,
    indexes: Tensor,
    changes: config.Augment,
    *,
    n_classes: int,
    label_smoothing: float = 0.0,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Blends a batch with its mirror image: mixup or cutmix, one blend for the whole batch.

    Picture i is blended with picture B - 1 - i and the middle one of an odd batch with itself.
    Processes that hold the parts `order.share` gives them, and pass the same seed, blend together
    what one process would.

    Args:
        images: float32, shape (B, 3, S, S); it may be changed in place.
        indexes: int64, shape (B,), classes.
        changes: `mixup` and `cutmix`; either of them, at random, where both are on.
        n_classes: C.
        label_smoothing: share of every target that is spread over all classes.
        seed: the same for all processes of a step, from `seed_of`.

    Returns:
        Images (B, 3, S, S), and targets, float32, shape (B, C), each row summing to 1. Where
        neither is on, the images as they are, with the smoothed targets.
    """
    n, middle = len(images), len(images) // 2
    mixer = timm_data().Mixup(
        changes.mixup,
        changes.cutmix,
        prob=1.0 if mixes(changes) and n else 0.0,
        label_smoothing=label_smoothing,
        num_classes=n_classes,
    )
    if n % 2:  # timm takes even batches only: the middle picture is there twice for a while
        images = torch.cat([images[: middle + 1], images[middle:]])
        indexes = torch.cat([indexes[: middle + 1], indexes[middle:]])
    with numpy_seeded(seed):
        images, targets = mixer(images, indexes)
    if n % 2:
        images = torch.cat([images[:middle], images[middle + 1 :]])
        targets = torch.cat([targets[:middle], targets[middle + 1 :]])
    return images, targets
