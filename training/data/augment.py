"""Random changes of training pictures, each a pure function of the picture and a seed.

torchvision's transforms and timm's mixing draw from global generators; they are seeded for the call
and put back, so nothing else in the process notices.

Shapes: B pictures of a batch, S = crop size in pixels, C classes.
"""

from __future__ import annotations

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
from training.system.torch_compat import prepare_torchvision, timm

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
        prepare_torchvision()
        from torchvision.transforms import v2

        self.spec = spec
        self._changes = changes
        self._v2: Any = v2
        self._crop: Any = v2.RandomResizedCrop(
            spec.crop_size_px,
            changes.crop_scale,
            changes.crop_ratio,
            interpolation=v2.InterpolationMode(spec.interpolation),
        )
        self._flip: Any = v2.RandomHorizontalFlip(changes.flip)
        self._jitter: Any = v2.ColorJitter(*[changes.color_jitter] * 3)
        mean = [round(255 * value) for value in spec.mean]
        self._erase: Any = v2.RandomErasing(changes.erasing, value=mean)

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
        changes = self._changes
        with torch_seeded(seed_of("augment", *seed)):
            if changes.crop_scale == _WHOLE:
                image = Image.fromarray(resize_and_crop(image, self.spec))
            else:
                image = self._crop(image)
            image = self._flip(image)

            if changes.rotate_degrees or changes.translate or changes.zoom != _WHOLE:
                shift = (changes.translate, changes.translate)
                image = self._v2.RandomAffine(
                    changes.rotate_degrees, shift, changes.zoom, **self._moving(image)
                )(image)
            if changes.rand_augment_operations:
                image = self._v2.RandAugment(
                    changes.rand_augment_operations,
                    changes.rand_augment_magnitude,
                    **self._moving(image),
                )(image)

            if changes.color_jitter:
                image = self._jitter(image)
            erased: Tensor = self._erase(to_tensor(np.asarray(image)))
            return erased

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process must prepare torchvision before it unpickles anything of it.
        return type(self), (self._changes, self.spec)

    def _moving(self, image: Image.Image) -> dict[str, Any]:
        """Returns how pixels of a picture are moved, and what fills the places they leave."""
        # Pillow moves pixels bicubically at three times the price, and not at all by Lanczos.
        mode = "nearest" if self.spec.interpolation == "nearest" else "bilinear"
        return {"interpolation": self._v2.InterpolationMode(mode), "fill": border_colour(image)}


def border_colour(image: Image.Image) -> list[int]:
    """Returns the median colour of the outermost pixels of a picture of mode RGB, 0..255 each."""
    pixels = np.asarray(image)  # (H, W, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    middle = len(border) // 2
    return [int(value) for value in np.partition(border, middle, axis=0)[middle]]


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
    Processes that hold the parts `sampler.share` gives them, and pass the same seed, blend together
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
    is_on = changes.mixup > 0 or changes.cutmix > 0
    mixer = timm().data.Mixup(
        changes.mixup,
        changes.cutmix,
        prob=1.0 if is_on and n else 0.0,
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
