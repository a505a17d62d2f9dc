"""The model repository on disk: `<models>/<name>/<version>/` with a manifest and the files it lists.

The files of a version are never edited. `manifest.sha256` holds the digest of `manifest.json`, which
holds the digests of all other files. Reading a version verifies every digest and returns the bytes
that were hashed, so a file cannot be swapped between check and use. Links, special files and files
that the manifest does not list are refused. The graph of the layers is large and seldom needed:
its digest is verified, but its bytes are read again when somebody asks for them.

Sizes are bounded before anything is read, because a folder can hold files of any size: a sparse file
of 32 GB takes no space on a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Final

from contract.errors import ManifestInvalid, VersionCorrupt
from contract.manifest import MANIFEST_FILE, SEAL_FILE, Manifest, dump_manifest, parse_manifest
from contract.upgrades import SCHEMA_VERSION, schema_version_of

MAX_FILE_BYTES: Final = 2**31
"""Largest file of a version. An ONNX file, as any protobuf message, is smaller than 2 GiB."""
MAX_MANIFEST_BYTES: Final = 2**24
"""Largest manifest. 1,000 labels take 90 kB, so this is enough for 180,000."""
_MAX_VERSION_BYTES: Final = 2 * MAX_FILE_BYTES  # two graphs; the other files are small
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")  # not "01": version 1 is read from the folder "1"
# Refuses a link, and does not wait for the other end of a pipe, that took the place of a file.
_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Version:
    """A version whose files all match its manifest.

    Attributes:
        manifest_sha256: the digest of the manifest file, 64 hexadecimal digits. It identifies the
            whole version, because the manifest holds the digests of all files.
        contents: the bytes of each listed file except the graph of the layers, by its path relative
            to the version's folder.
        schema_version: of the manifest file; `manifest` is always in SCHEMA_VERSION.
    """

    manifest: Manifest
    manifest_sha256: str
    contents: Mapping[str, bytes]
    schema_version: int = SCHEMA_VERSION

    @property
    def graph(self) -> bytes:
        """The bytes of the ONNX file."""
        return self.contents[self.manifest.graph.file]


def is_version_number(name: str) -> bool:
    """Returns whether a folder's name is the number of a version."""
    return _NUMBER.fullmatch(name) is not None


def find_versions(models_dir: Path) -> dict[str, list[int]]:
    """Returns the version numbers of each model name, ascending. Reads no file.

    Skips names that begin with a dot (publishing in progress) and folders without a manifest.
    """
    found: dict[str, list[int]] = {}
    for manifest in sorted(models_dir.glob(f"*/*/{MANIFEST_FILE}")):
        name, number = manifest.parent.parent.name, manifest.parent.name
        if not name.startswith(".") and is_version_number(number):
            found.setdefault(name, []).append(int(number))
    return {name: sorted(numbers) for name, numbers in found.items()}


def read_version(models_dir: Path, name: str, version: int) -> Version:
    """Reads one version completely and verifies its files against its manifest.

    Raises:
        ManifestInvalid: the manifest is missing or wrong, or describes another name or version.
        VersionCorrupt: a file is missing, extra, not a regular file, too large, or has the wrong
            digest.
    """
    folder = models_dir / name / str(version)
    where = f"{name}/{version}"

    if folder.is_symlink():
        raise VersionCorrupt(f"{where}: the folder is a link")
    present = _regular_files(folder, where)
    if MANIFEST_FILE not in present:
        raise ManifestInvalid(f"{where}: {MANIFEST_FILE} is missing")

    text = _read_manifest(folder, where)
    manifest = _parse(text, name, version)
    extra = present - manifest.files.keys() - {MANIFEST_FILE, SEAL_FILE}
    if extra:
        raise VersionCorrupt(f"{where}: {min(extra)} is not listed in the manifest")
    layers = manifest.layers.file if manifest.layers is not None else None
    contents: dict[str, bytes] = {}
    for path, digest in manifest.files.items():
        if path == layers:
            _verify(folder, path, digest, where)
        else:
            contents[path] = _read_verified(folder, path, digest, where)

    written_in = schema_version_of(json.loads(text))
    return Version(manifest, sha256(text), MappingProxyType(contents), written_in)


def read_manifest(models_dir: Path, name: str, version: int) -> tuple[Manifest, str]:
    """Reads the manifest of one version without its other files.

    Returns:
        The manifest and its digest, as in `Version`.

    Raises:
        ManifestInvalid: the manifest is missing or wrong, or describes another name or version.
        VersionCorrupt: it is not the manifest that was published.
    """
    text = _read_manifest(models_dir / name / str(version), f"{name}/{version}")
    return _parse(text, name, version), sha256(text)


def read_layers(models_dir: Path, manifest: Manifest) -> bytes | None:
    """Returns the ONNX file that gives the values of every layer, None if the version has none.

    Raises:
        VersionCorrupt: the file is missing, or not the one that was published.
    """
    if manifest.layers is None:
        return None
    path, name, number = manifest.layers.file, manifest.name, str(manifest.version)
    folder, where = models_dir / name / number, f"{name}/{number}"
    return _read_verified(folder, path, manifest.files[path], where)


def manifest_files(manifest: Manifest) -> dict[str, bytes]:
    """Returns the contents of manifest.json and manifest.sha256, by file name."""
    text = dump_manifest(manifest).encode()
    return {MANIFEST_FILE: text, SEAL_FILE: seal(text)}


def seal(manifest_text: bytes) -> bytes:
    """Returns the content of manifest.sha256, as `sha256sum manifest.json` prints it."""
    return f"{sha256(manifest_text)}  {MANIFEST_FILE}\n".encode()


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of the data as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _parse(text: bytes, name: str, version: int) -> Manifest:
    where = f"{name}/{version}"
    try:
        manifest = parse_manifest(text)
    except ManifestInvalid as error:
        raise ManifestInvalid(f"{where}: {error}") from error
    if (manifest.name, manifest.version) != (name, version):
        described = f"{manifest.name}/{manifest.version}"
        raise ManifestInvalid(f"{where}: the manifest describes {described}")
    return manifest


def _read_manifest(folder: Path, where: str) -> bytes:
    try:
        text = _read_bounded(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ManifestInvalid(f"{where}: {MANIFEST_FILE} is unreadable") from error
    except _TooLarge as error:
        raise ManifestInvalid(f"{where}: {MANIFEST_FILE} {error}") from error

    try:
        sealed = _read_bounded(folder / SEAL_FILE, MAX_MANIFEST_BYTES)
    except (OSError, _TooLarge) as error:
        raise VersionCorrupt(f"{where}: {SEAL_FILE} is missing or unreadable") from error
    if sealed != seal(text):
        raise VersionCorrupt(
            f"{where}: {MANIFEST_FILE} is not the file that was published ({SEAL_FILE} differs)"
        )

    return text


def _regular_files(folder: Path, where: str) -> set[str]:
    found: set[str] = set()
    n_bytes = 0
    for path in _walk(folder, where):
        relative = path.relative_to(folder).as_posix()
        try:
            facts = path.lstat()  # of a link itself, not of its target
        except OSError as error:
            raise VersionCorrupt(f"{where}: {relative}: {error.strerror}") from error
        if stat.S_ISREG(facts.st_mode):
            found.add(relative)
            n_bytes += facts.st_size
        elif not stat.S_ISDIR(facts.st_mode):
            raise VersionCorrupt(f"{where}: {relative} is a link or a special file")
        if facts.st_size > MAX_FILE_BYTES:
            raise VersionCorrupt(f"{where}: {relative} {_TooLarge(facts.st_size, MAX_FILE_BYTES)}")
    if n_bytes > _MAX_VERSION_BYTES:
        raise VersionCorrupt(f"{where}: all files {_TooLarge(n_bytes, _MAX_VERSION_BYTES, 'have')}")
    return found


def _walk(folder: Path, where: str) -> Iterator[Path]:
    # Unlike Path.rglob, this does not pass over folders that cannot be listed, and unlike os.walk it
    # does not call itself: folders may be nested more deeply than calls.
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                found = list(entries)
            waiting += [Path(one) for one in found if one.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise VersionCorrupt(f"{where}: a folder cannot be listed: {error.strerror}") from error
        yield from map(Path, found)


class _TooLarge(Exception):
    """A file exceeds the limit."""

    def __init__(self, size_bytes: int, limit_bytes: int, has: str = "has") -> None:
        super().__init__(f"{has} {size_bytes:,} bytes, the limit is {limit_bytes:,}")


def _open(path: Path, limit_bytes: int) -> tuple[BufferedReader, int]:
    """Opens a regular file, and returns it with its size.

    Raises:
        OSError: it is missing, unreadable, or not a regular file.
        _TooLarge: it exceeds the limit.
    """
    file = os.fdopen(os.open(path, _OPEN_FLAGS), "rb")
    try:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if facts.st_size > limit_bytes:
            raise _TooLarge(facts.st_size, limit_bytes)
    except BaseException:
        file.close()
        raise
    return file, facts.st_size


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    file, size = _open(path, limit_bytes)
    with file:
        return file.read(size)  # not `read()`: the file may grow meanwhile


def _read_verified(folder: Path, path: str, digest: str, where: str) -> bytes:
    try:
        data = _read_bounded(folder / path, MAX_FILE_BYTES)
    except OSError as error:
        raise VersionCorrupt(f"{where}: {path} is missing or unreadable") from error
    except _TooLarge as error:
        raise VersionCorrupt(f"{where}: {path} {error}") from error
    _compare(sha256(data), digest, path, where)
    return data


def _verify(folder: Path, path: str, digest: str, where: str) -> None:
    # In pieces: the file may be large.
    try:
        file, _ = _open(folder / path, MAX_FILE_BYTES)
        with file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VersionCorrupt(f"{where}: {path} is missing or unreadable") from error
    except _TooLarge as error:
        raise VersionCorrupt(f"{where}: {path} {error}") from error
    _compare(found, digest, path, where)


def _compare(found: str, digest: str, path: str, where: str) -> None:
    if found != digest:
        raise VersionCorrupt(
            f"{where}: {path} is not the file that was published (SHA-256 differs)"
        )
