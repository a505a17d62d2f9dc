"""Decodes thousands of damaged HEIC and AVIF files in child processes that are limited and watched.

    python -m tests.corpora.mutated --files 20000
    python -m tests.corpora.mutated --files 20000 --more FOLDER   # also damages files of your own

Half of the files are damaged anywhere. The other half is damaged inside of the compressed data and its
description, and all lengths are put right again, so that decoders see what is wrong. A crash, or more
time or memory than the limits, is named with the number that makes the same file again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Final

from contract.errors import ImageError
from contract.images import decode, heif
from contract.images.heif.pictures import Coded, Grid, HeifPicture
from tests import pictures
from tests.contract.images.heif import FILES

CPU_LIMIT_S: Final = 30
MEMORY_LIMIT_BYTES: Final = 3 << 30
_BATCH: Final = 250
_HEAD_BYTES: Final = 1024  # where the description is
_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WIDE: Final = heif.HeifLimits(50_000_000, 200_000_000)


@dataclass
class Report:
    """What became of the files.

    Attributes:
        outcomes: files by error code, or by "ok".
        cpu_s: the longest time that one file took, and its number.
        memory_mb: the most memory that one file took, and its number.
        failures: (number, what happened) of crashes, and of errors that are no `ImageError`.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    cpu_s: tuple[float, int] = (0.0, -1)
    memory_mb: tuple[float, int] = (0.0, -1)
    failures: list[tuple[int, str]] = field(default_factory=list)


def seeds(more: Path | None = None) -> list[bytes]:
    """Returns good files: those that are committed, some of Pillow's, and those of a folder."""
    image = pictures.photo()
    found = [path.read_bytes() for path in sorted(FILES.iterdir())]
    found += [
        pictures.encode(image, "AVIF"),
        pictures.encode(image.convert("RGBA"), "AVIF"),
        pictures.encode(image, "AVIF", subsampling="4:0:0"),
        pictures.encode(pictures.photo((300, 200)), "AVIF", quality=100),
    ]
    if more is not None:
        found += [path.read_bytes() for path in sorted(more.rglob("*")) if path.is_file()]
    return found


def damaged(number: int, good: Sequence[bytes]) -> bytes:
    """Returns the damaged file of this number."""
    random = Random(number)  # noqa: S311 - repeatable
    data = random.choice(good)
    if random.random() < 0.5:
        return _damage(data, random, random.choice(good))
    brand = heif.brand_of(data)
    try:
        assert brand is not None
        picture = heif.read_picture(data, brand, _WIDE)
    except ImageError:
        return _damage(data, random, random.choice(good))
    return heif.write_file(_damaged_inside(picture, random), brand)


def _damage(data: bytes, random: Random, other: bytes = b"") -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        reach = min(len(changed), _HEAD_BYTES) if random.random() < 0.5 else len(changed)
        at, n = random.randrange(reach), random.choice((1, 2, 4, 8, 64))
        kind = random.randrange(8)
        if kind < 2:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            changed[at] = random.randrange(256)
        elif kind == 3:
            size = random.choice((1, 2, 4))
            value = random.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = value.to_bytes(size, "big")
        elif kind == 4:
            del changed[at : at + n]
        elif kind == 5:
            changed[at:at] = changed[at : at + n]
        elif kind == 6:
            changed[at : at + n] = random.randbytes(n)
        elif other:
            start = random.randrange(len(other))
            changed[at : at + n] = other[start : start + n]
    return bytes(changed)


def _damaged_inside(picture: HeifPicture, random: Random) -> HeifPicture:
    if picture.alpha is not None and random.random() < 0.3:
        return replace(picture, alpha=_damaged_part(picture.alpha, random))
    return replace(picture, colours=_damaged_part(picture.colours, random))


def _damaged_part(part: Coded | Grid, random: Random) -> Coded | Grid:
    if isinstance(part, Grid):
        tiles = list(part.tiles)
        config = _damaged_config(tiles[0], random) if random.random() < 0.3 else tiles[0].config
        at = random.randrange(len(tiles))
        tiles[at] = _damaged_data(tiles[at], random)
        return replace(part, tiles=tuple(replace(tile, config=config) for tile in tiles))
    if random.random() < 0.4:
        return replace(part, config=_damaged_config(part, random))
    return _damaged_data(part, random)


def _damaged_config(part: Coded, random: Random) -> bytes:
    if part.kind == b"av01":
        return _damage(part.config, random)
    # 22 bytes, the number of lists; then of each list its type, a count and units with lengths.
    config, position = part.config[:23], 23
    chosen = random.randrange(part.config[22])
    for index in range(part.config[22]):
        length = int.from_bytes(part.config[position + 3 : position + 5], "big")
        unit = part.config[position + 5 : position + 5 + length]
        if index == chosen:  # its two first bytes say what it is
            unit = unit[:2] + _damage(unit[2:], random)
        config += part.config[position : position + 3] + len(unit).to_bytes(2, "big") + unit
        position += 5 + length
    return config


def _damaged_data(part: Coded, random: Random) -> Coded:
    if part.kind == b"av01":
        return replace(part, data=_damage(part.data, random))
    length = int.from_bytes(part.data[:4], "big")
    unit = part.data[4 : 4 + length]
    unit = unit[:3] + _damage(unit[3:], random)
    return replace(part, data=len(unit).to_bytes(4, "big") + unit + part.data[4 + length :])


def run(numbers: Sequence[int], more: Path | None = None) -> Report:
    """Decodes the damaged files of these numbers in child processes, one after the other."""
    context, report = multiprocessing.get_context("spawn"), Report()
    left = list(numbers)
    while left:
        batch, left = left[:_BATCH], left[_BATCH:]
        ours, theirs = context.Pipe()
        child = context.Process(target=_decode_all, args=(batch, more, theirs))
        child.start()
        theirs.close()
        done = _collect(ours, report)
        child.join()
        if done < len(batch):
            report.failures.append((batch[done], f"the process ended with {child.exitcode}"))
            left = batch[done + 1 :] + left
    return report


def _collect(ours: Connection, report: Report) -> int:
    done = 0
    while True:
        try:
            number, outcome, cpu_s, memory_mb = ours.recv()
        except EOFError:
            return done
        done += 1
        report.outcomes[outcome] += 1
        report.cpu_s = max(report.cpu_s, (cpu_s, number))
        report.memory_mb = max(report.memory_mb, (memory_mb, number))
        if " " in outcome:
            report.failures.append((number, outcome))


def _decode_all(numbers: Sequence[int], more: Path | None, theirs: Connection) -> None:
    good = seeds(more)
    _limit(resource.RLIMIT_AS, MEMORY_LIMIT_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    for number in numbers:
        data = damaged(number, good)
        _limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + CPU_LIMIT_S)
        before_mb, started_s = _reset_peak(), time.process_time()
        outcome = _outcome(data)
        cpu_s = time.process_time() - started_s
        theirs.send((number, outcome, cpu_s, _peak_mb() - before_mb))


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))


def _outcome(data: bytes) -> str:
    try:
        decode(data)
    except ImageError as error:
        return error.code
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must not come out of a decoder
        return f"escaped: {type(error).__name__} {error}"
    return "ok"


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak_mb()


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--more", type=Path)
    options = parser.parse_args()

    report = run(range(options.first, options.first + options.files), options.more)
    lines = [f"{n:8,}  {outcome}" for outcome, n in report.outcomes.most_common()]
    lines.append(f"most CPU     {report.cpu_s[0]:.2f} s (file {report.cpu_s[1]})")
    lines.append(f"most memory  {report.memory_mb[0]:.0f} MB (file {report.memory_mb[1]})")
    lines += [f"file {number}: {what}" for number, what in report.failures]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
