"""HEIC and AVIF: reads the container, bounds what a decoder will do, and writes a small file for it.

The size that a container declares bounds nothing: a decoder takes its sizes from the compressed data,
and pictures can be composed of others. So no decoder gets the file as it came. `read_picture` checks every
part that makes pixels and `write_file` makes a new file of these parts alone.

Layouts: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF items), 23008-2 (HEVC), the AV1 specification.
"""

from contract.images.heif.boxes import brand_of
from contract.images.heif.items import declared_size
from contract.images.heif.pictures import HeifLimits, HeifPicture, read_picture
from contract.images.heif.writing import write_file

__all__ = [
    "HeifLimits",
    "HeifPicture",
    "brand_of",
    "declared_size",
    "read_picture",
    "write_file",
]
