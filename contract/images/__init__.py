"""From the bytes of an upload to pixels, and what is refused on the way.

`decode` gives the whole picture. What answers requests calls `inspect` first, which costs
microseconds, and hands its result on to `decode_reduced`, so that a header is read once.
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

__all__ = [
    "DECODERS",
    "ImageFile",
    "ImageLimits",
    "Picture",
    "decode",
    "decode_reduced",
    "inspect",
    "sniff",
]
