"""Decodes every picture once and keeps the facts that the checks need, about 1.3 kB per picture.

It decodes as the service does, so a picture that is readable here is readable there. An unreadable
file is never fatal: its facts hold the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract import images
from contract.errors import ImageError
from training.data.checks.duplicates import Progress
from training.data.checks.similarity import THUMBNAIL_PX
from training.data.samples import Sample, reason_of

MAX_THREADS: Final = 4  # each holds a decoded picture

# Where a PNG stores its bit depth: after the signature, IHDR's length and name, width and height.
_DEPTH_BYTE: Final = 24


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """The facts of one picture; with an error, all other fields are empty."""

    error: str | None = None  # why it cannot be read
    format: str = ""  # such as "jpeg"
    mode: str = ""  # Pillow's name of the stored colours, with " 16-bit" where Pillow hides that
    size_px: tuple[int, int] = (0, 0)  # (width, height), upright
    digest: bytes = b""  # SHA-256 of the decoded pixels and their size, not of the file
    thumbnail: bytes = b""  # grey, THUMBNAIL_PX squared bytes, the whole picture squashed

    @property
    def readable(self) -> bool:
        return self.error is None


def read_facts(samples: Sequence[Sample], progress: Progress | None = None) -> list[PictureFacts]:
    """Decodes pictures in a few threads and returns their facts in the same order.

    `progress` is called after each picture, from the calling thread.
    """
    facts: list[PictureFacts] = []
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "read-facts")
    try:
        for one in pool.map(picture_facts, samples):
            facts.append(one)
            if progress is not None:
                progress(len(facts), len(samples))
    finally:
        # After an interrupt, pictures that are still waiting are not decoded.
        pool.shutdown(cancel_futures=True)
    return facts


def picture_facts(sample: Sample) -> PictureFacts:
    try:
        data = sample.read()
        image = images.decode(data)
        return PictureFacts(
            format=images.sniff(data).name,
            mode=_stored_mode(data),
            size_px=image.size,
            digest=_digest(image),
            thumbnail=_thumbnail(image),
        )
    except (ImageError, OSError) as error:
        return PictureFacts(error=reason_of(error))
    except MemoryError:
        return PictureFacts(error="the picture does not fit into memory")


def thumbnails(facts: Sequence[PictureFacts]) -> NDArray[np.uint8]:
    """Returns uint8, shape (N, T, T), 0..255, of readable pictures; T = THUMBNAIL_PX."""
    joined = b"".join(one.thumbnail for one in facts)
    return np.frombuffer(joined, np.uint8).reshape(len(facts), THUMBNAIL_PX, THUMBNAIL_PX)


def _stored_mode(data: bytes) -> str:
    # Opens the file as `decode` does, but reads only its header.
    file = images.inspect(data)
    with file.decoder.opened(file.stripped().data) as image:
        mode = image.mode
        if mode == "P" and "transparency" in image.info:
            mode = "P with transparency"

    # Pillow says "RGB" of a PNG with 16 bits per channel.
    deep = file.decoder.name == "png" and data[_DEPTH_BYTE] == 16 and "16" not in mode
    return f"{mode} 16-bit" if deep else mode


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.digest()


def _thumbnail(image: Image.Image) -> bytes:
    # Pillow's bilinear filter averages over two pixels of the result, so shifted crops still agree.
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return image.convert("L").resize(side, Image.Resampling.BILINEAR).tobytes()
