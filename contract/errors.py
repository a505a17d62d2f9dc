"""Errors of the contract. They know nothing about HTTP.

ContractError
├── ImageError                     the picture a client sent
│   ├── UnsupportedMediaType       the bytes are not an accepted format
│   ├── ImageUndecodable           the format is accepted, the content is broken
│   ├── ImageTruncated             the file ends before the picture does
│   ├── ImageTooManyPixels         more pixels than the budget
│   ├── ImageTooComplex            cheap to send, expensive to decode (JPEG scans)
│   └── ImageBadDimensions         a side or the aspect ratio is out of range
├── ModelError                     a version in the model repository
│   ├── ManifestInvalid            manifest.json is missing, malformed or contradicts itself
│   ├── VersionCorrupt             a file is missing, extra, linked, unreadable or has the wrong digest
│   ├── VersionTooCostly           reading or verifying takes more time or memory than it may
│   ├── GraphMismatch              the graph differs from the manifest
│   └── GoldenMismatch             the served model's answer differs from the trained one's
└── RepositoryError                the model repository as a whole
    ├── RepositoryUnreadable       its folder is missing or cannot be listed
    ├── RepositoryFileInvalid      repository.toml is unreadable or not valid
    ├── RepositoryFileUnwritable   repository.toml cannot be written, or somebody else just did
    ├── NumbersInvalid             the record of given version numbers is unreadable or garbled
    ├── VersionRemoved             the number of a new version belonged to one that was removed
    ├── NothingToServe             a model has no version that may answer
    └── ChangeRefused              a change that its rules do not allow

Every class has a stable snake_case `code`. Messages state facts (value, limit, unit) and never
contain the input itself.
"""

from __future__ import annotations

from typing import ClassVar


class ContractError(Exception):
    """Base of every error this package raises on purpose."""

    code: ClassVar[str]


class ImageError(ContractError):
    """The picture cannot be accepted. Only the request that sent it is affected."""


class UnsupportedMediaType(ImageError):
    """The bytes are not an accepted image format."""

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
    """The picture would cost much more to decode than its size suggests."""

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
    """The files of a version are not those that its manifest lists."""

    code = "version_corrupt"


class VersionTooCostly(ModelError):
    """Reading or verifying a version takes more time or memory than it may."""

    code = "version_too_costly"


class GraphMismatch(ModelError):
    """The graph cannot be loaded, or its inputs, outputs or shapes differ from the manifest."""

    code = "graph_mismatch"


class GoldenMismatch(ModelError):
    """The answer to a golden example differs from the published one."""

    code = "golden_mismatch"


class RepositoryError(ContractError):
    """The model repository cannot be used, or not changed."""


class RepositoryUnreadable(RepositoryError):
    """The folder is missing or cannot be listed."""

    code = "repository_unreadable"


class RepositoryFileInvalid(RepositoryError):
    """repository.toml cannot be read, or is not valid."""

    code = "repository_file_invalid"


class RepositoryFileUnwritable(RepositoryError):
    """repository.toml cannot be written, or changed while it was being edited."""

    code = "repository_file_unwritable"


class NumbersInvalid(RepositoryError):
    """The record of version numbers that were given cannot be read, or is not valid."""

    code = "numbers_invalid"


class VersionRemoved(RepositoryError):
    """The number of a new version belonged to one that was removed."""

    code = "version_removed"


class NothingToServe(RepositoryError):
    """A model has no version that may answer."""

    code = "nothing_to_serve"


class ChangeRefused(RepositoryError):
    """A change to the repository that its rules do not allow."""

    code = "change_refused"
