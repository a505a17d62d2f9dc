"""Decodes every picture once and keeps what the checks need: about 1.3 kB of facts a picture.

Decoding is `contract`'s, so a picture that passes here passes in the service too. Nothing about a
single file is fatal: what cannot be read gets the reason instead.
"""

from __future__ import annotations

import hashlib
import io
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
from training.data.checks.likeness import THUMBNAIL_PX
from training.data.samples import Sample, reason_of

MAX_THREADS: Final = 4

_DEPTH_BYTE: Final = 24  # of a PNG: after the signature, IHDR's length and name, width and height


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What is known of one picture.

    Attributes:
        error: why it cannot be read; None where it can. Everything else is empty then.
        format: of the file, such as "jpeg".
        mode: Pillow's name of the stored colours, with " 16-bit" where Pillow hides that.
        size_px: (width, height), upright.
        digest: SHA-256 of the decoded pixels and their size; tags and compression do not count.
        thumbnail: grey, THUMBNAIL_PX squared bytes, the whole picture squashed.
    """

    error: str | None = None
    format: str = ""
    mode: str = ""
    size_px: tuple[int, int] = (0, 0)
    digest: bytes = b""
    thumbnail: bytes = b""

    @property
    def readable(self) -> bool:
        """The picture decodes."""
        return self.error is None


def inspect(samples: Sequence[Sample], progress: Progress | None = None) -> list[PictureFacts]:
    """Decodes pictures, a few at a time.

    Args:
        samples: readable or not.
        progress: called after each picture, from the calling thread.

    Returns:
        The facts of each sample, in the same order.
    """
    facts: list[PictureFacts] = []
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "inspect")
    try:
        for one in pool.map(inspect_one, samples):
            facts.append(one)
            if progress is not None:
                progress(len(facts), len(samples))
    finally:
        pool.shutdown(cancel_futures=True)
    return facts


def inspect_one(sample: Sample) -> PictureFacts:
    """Decodes one picture."""
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
    """Reads the mode from the header of a picture that decodes, as `decode` opens it."""
    file = images.inspect(data)
    with Image.open(io.BytesIO(file.stripped().data), formats=file.decoder.plugins) as image:
        mode = image.mode
        if mode == "P" and "transparency" in image.info:
            mode = "P with transparency"
    deep = file.decoder.name == "png" and data[_DEPTH_BYTE] == 16 and "16" not in mode
    return f"{mode} 16-bit" if deep else mode


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.digest()


def _thumbnail(image: Image.Image) -> bytes:
    # Bilinear of Pillow averages over two pixels of the result, so that shifted crops still agree.
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return image.convert("L").resize(side, Image.Resampling.BILINEAR).tobytes()
