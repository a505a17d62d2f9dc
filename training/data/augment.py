"""Random changes of training pictures, as pure functions of the picture and a seed.

torchvision's transforms and timm's mixing draw from global generators. These are seeded for the call
and restored afterwards.

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
    """Augments one picture: crop, flip, affine, RandAugment, colour jitter, erasing.

    With a `crop_scale` of (1, 1), the picture is resized and cropped as in evaluation.
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
        # The mean colour is zero after normalisation.
        self._erase: Any = v2.RandomErasing(changes.erasing, value=mean)

    def __call__(self, data: bytes, seed: Seed) -> Tensor:
        return self.change(decode(data), seed)

    def change(self, image: Image.Image, seed: Seed) -> Tensor:
        """Returns an RGB picture of any size, augmented: uint8, shape (3, S, S), 0..255."""
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
                    changes.rotate_degrees, shift, changes.zoom, **self._warp_options(image)
                )(image)
            if changes.rand_augment_operations:
                image = self._v2.RandAugment(
                    changes.rand_augment_operations,
                    changes.rand_augment_magnitude,
                    **self._warp_options(image),
                )(image)

            if changes.color_jitter:
                image = self._jitter(image)

            erased: Tensor = self._erase(to_tensor(np.asarray(image)))
            return erased

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process must prepare torchvision before it unpickles anything of it.
        return type(self), (self._changes, self.spec)

    def _warp_options(self, image: Image.Image) -> dict[str, Any]:
        # The fill keeps digits on black and clothes on white; the usual grey or black corners would
        # be shapes for the network to learn. Bicubic takes Pillow three times as long as bilinear,
        # and it cannot warp with Lanczos.
        mode = "nearest" if self.spec.interpolation == "nearest" else "bilinear"
        return {"interpolation": self._v2.InterpolationMode(mode), "fill": border_colour(image)}


def border_colour(image: Image.Image) -> list[int]:
    """Returns the median of each channel, 0..255, over the outermost pixels of an RGB picture."""
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
    """Applies mixup or cutmix with one ratio for the whole batch, and label smoothing.

    Picture i is blended with picture B - 1 - i. Each process can blend its own part of a global
    batch, as `sampler.share` divides it; with the same seed the result is that of one process.

    Args:
        images: float32, shape (B, 3, S, S); may be changed in place.
        indexes: int64, shape (B,), classes.
        changes: with both `mixup` and `cutmix`, one of the two is drawn at random.
        n_classes: C.
        label_smoothing: share of every target that is spread over all classes, 0..1.
        seed: the same in all processes of a step.

    Returns:
        Images (B, 3, S, S), and targets, float32, shape (B, C), each row summing to 1.
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

    # timm takes even batches only, so the middle picture of an odd one is blended with a copy.
    if n % 2:
        images = torch.cat([images[: middle + 1], images[middle:]])
        indexes = torch.cat([indexes[: middle + 1], indexes[middle:]])
    with numpy_seeded(seed):
        images, targets = mixer(images, indexes)

    if n % 2:
        images = torch.cat([images[:middle], images[middle + 1 :]])
        targets = torch.cat([targets[:middle], targets[middle + 1 :]])
    return images, targets
