"""From the bytes of an upload to pixels, with limits on what is accepted.

`decode` gives the whole picture. Requests are answered in two steps: `inspect` reads the header in
microseconds, and `decode_reduced` decodes its result without reading the header again.
"""

from contract.images.decoding import (
    DECODERS,
    ImageFile,
    ImageLimits,
    Picture,
    decode,
    decode_reduced,
    inspect,
    sniff,
)
from contract.images.suffixes import SUFFIXES, is_image_name

__all__ = [
    "DECODERS",
    "SUFFIXES",
    "ImageFile",
    "ImageLimits",
    "Picture",
    "decode",
    "decode_reduced",
    "inspect",
    "is_image_name",
    "sniff",
]
