"""Errors of the contract, without any knowledge of HTTP.

ContractError
├── ImageError                     the picture a client sent
│   ├── UnsupportedMediaType       the bytes are of no accepted format
│   ├── ImageUndecodable           the format is accepted, the content is broken
│   ├── ImageTruncated             the file ends before the picture does
│   ├── ImageTooManyPixels         more pixels than the budget
│   ├── ImageTooComplex            cheap to send, dear to decode (JPEG scans)
│   └── ImageBadDimensions         a side or the aspect ratio is out of range
└── ModelError                     a version in the model repository
    ├── ManifestInvalid            manifest.json is missing, malformed or contradicts itself
    ├── VersionCorrupt             a file is missing, extra, linked or has another digest
    ├── GraphMismatch              the graph is not what the manifest says
    └── GoldenMismatch             the served model does not answer what the trained one did

Every class has a stable snake_case `code`; messages are built from facts (value, limit, unit) and
never contain the input itself.
"""

from __future__ import annotations

from typing import ClassVar


class ContractError(Exception):
    """Base of every error this package raises on purpose."""

    code: ClassVar[str]


class ImageError(ContractError):
    """The picture cannot be accepted; only the request that carried it is concerned."""


class UnsupportedMediaType(ImageError):
    """The bytes are not of an accepted image format."""

    code = "unsupported_media_type"


class ImageUndecodable(ImageError):
    """The format is accepted but the content cannot be decoded."""

    code = "image_undecodable"


class ImageTruncated(ImageError):
    """The file ends before the picture is complete."""

    code = "image_truncated"


class ImageTooManyPixels(ImageError):
    """The picture declares more pixels than the budget allows."""

    code = "image_too_many_pixels"


class ImageTooComplex(ImageError):
    """The picture would cost far more to decode than its size suggests."""

    code = "image_too_complex"


class ImageBadDimensions(ImageError):
    """A side or the aspect ratio is outside the accepted range."""

    code = "image_bad_dimensions"


class ModelError(ContractError):
    """A version in the model repository cannot be used."""


class ManifestInvalid(ModelError):
    """The manifest is missing, malformed or contradicts itself."""

    code = "manifest_invalid"


class VersionCorrupt(ModelError):
    """The files of a version are not the ones its manifest lists."""

    code = "version_corrupt"


class GraphMismatch(ModelError):
    """The graph cannot be loaded or has other inputs, outputs or shapes than the manifest says."""

    code = "graph_mismatch"


class GoldenMismatch(ModelError):
    """A golden example is not answered as it was when the version was published."""

    code = "golden_mismatch"
