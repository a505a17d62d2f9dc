"""Makes the files beside this one, with encoders that the service must not have.

    python -m venv /tmp/encoders
    /tmp/encoders/bin/pip install pillow==13.0.0 pillow-heif==1.8.1 imagecodecs==2026.3.6 numpy
    /tmp/encoders/bin/python -m tests.contract.images.heif.make_files

pillow-heif brings x265, which is GPL; the files are pictures and not covered by it. The picture is
`tests.pictures.photo`, so a test knows the right pixels.
"""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from tests.contract.images.heif import FILES
from tests.pictures import exif_block, photo, stored_as


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **{"quality": 90, **options})
    return buffer.getvalue()


def deep_heic(image: Image.Image) -> bytes:
    values = np.asarray(image).astype(np.uint16) * 257
    buffer = io.BytesIO()
    file = pillow_heif.from_bytes("RGB;16", image.size, values.tobytes())
    file.save(buffer, quality=90)
    return buffer.getvalue()


def deep_avif(image: Image.Image) -> bytes:
    return bytes(
        imagecodecs.avif_encode(np.asarray(image).astype(np.uint16) * 4, 90, bitspersample=10)
    )


def turned(upright: Image.Image, orientation: int) -> bytes:
    """Stores the picture turned. The file says in `irot`, `imir` and in its EXIF block how."""
    file = pillow_heif.from_pillow(stored_as(upright, orientation))
    file.info["exif"] = exif_block([(0x0112, 3, 1, orientation)])
    buffer = io.BytesIO()
    file.save(buffer, quality=90)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    ramp = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def main() -> None:
    FILES.mkdir(exist_ok=True)
    image, large = photo((64, 48)), photo((150, 100))
    made = {
        "plain.heic": heic(image),
        "odd.heic": heic(photo((37, 21))),
        "444.heic": heic(image, chroma="444"),
        "422.heic": heic(image, chroma="422"),
        "grey.heic": heic(image.convert("L")),
        "10-bit.heic": deep_heic(image),
        "alpha.heic": heic(with_alpha(image)),
        "premultiplied.heic": heic(with_alpha(image).convert("RGBa")),
        "grid.heic": heic(large, tile_size=64),
        "thumbnail.heic": heic(large, thumbnails=[64]),
        "two.heic": heic(image, append_images=[*pillow_heif.from_pillow(photo((32, 32), seed=1))]),
        "10-bit.avif": deep_avif(image),
        **{f"turned-{n}.heic": turned(image, n) for n in range(2, 9)},
    }
    for name, content in made.items():
        (FILES / name).write_bytes(content)


if __name__ == "__main__":
    main()
