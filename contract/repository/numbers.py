"""Version numbers that were given once, so that no number ever means two versions.

`<models>/<name>/.numbers` has one number a line. Publishing and removing a version add to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from contract.errors import NumbersInvalid, VersionRemoved
from contract.repository.writing import locked, replace_file
from contract.versions import is_version_number

NUMBERS_FILE: Final = ".numbers"
_MAX_BYTES: Final = 1 << 20  # more than 100,000 versions


def given_numbers(models_dir: Path, name: str) -> set[int]:
    """Returns every number that a version of the model has or had.

    Raises:
        NumbersInvalid: the record cannot be read, or a line of it is not a number.
        OSError: the model's folder cannot be listed.
    """
    home = models_dir / name
    return _recorded(home) | _present(home)


def next_number(models_dir: Path, name: str) -> int:
    """Returns the number of the next version of a model, 1 for its first one.

    Raises:
        NumbersInvalid: the record cannot be read, or a line of it is not a number.
        OSError: the model's folder cannot be listed.
    """
    return max(given_numbers(models_dir, name), default=0) + 1


def check_not_removed(models_dir: Path, name: str, number: int) -> None:
    """Raises VersionRemoved if the number was given before and there is no such version any more."""
    home = models_dir / name
    present = _present(home)
    recorded = _recorded(home)
    if number in recorded - present:
        raise VersionRemoved(
            f"{name}/{number} was removed; a number is never given twice; the next is "
            f"{max(recorded | present) + 1}"
        )


def record_number(models_dir: Path, name: str, number: int) -> None:
    """Records a number, and those of the versions that are there.

    Raises:
        NumbersInvalid: the record cannot be read, or a line of it is not a number.
        OSError: the record cannot be written.
    """
    home = models_dir / name
    with locked(home):
        recorded = _recorded(home)
        given = sorted(recorded | _present(home) | {number})
        if len(given) > len(recorded):
            text = "".join(f"{one}\n" for one in given)
            replace_file(home / NUMBERS_FILE, text.encode())


def _present(home: Path) -> set[int]:
    try:
        return {int(one.name) for one in home.iterdir() if is_version_number(one.name)}
    except FileNotFoundError:
        return set()


def _recorded(home: Path) -> set[int]:
    path = home / NUMBERS_FILE
    where = f"{home.name}/{NUMBERS_FILE}"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise NumbersInvalid(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise NumbersInvalid(f"{path}: larger than {_MAX_BYTES} bytes")

    lines = text.decode("ascii", errors="replace").splitlines()
    for i, line in enumerate(lines, start=1):
        if not is_version_number(line):
            raise NumbersInvalid(
                f"{path}: line {i} is not a version number. {where} holds every number that was "
                "given, one a line; correct the line or remove it"
            )
    return {int(line) for line in lines}
