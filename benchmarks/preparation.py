"""Compares ways to prepare a JPEG for a graph: CPU time, pixels and answers.

    python -m benchmarks.preparation PHOTOS --model models/efficientnet_lite0/2 [--model ...]

Every way is timed beside Pillow's full decode + resize + crop, alternating on each photo, in CPU
time of the thread. A ratio is the median over rounds. Answers are compared with those to Pillow's
pixels. `--part` chooses: ways, reduced (on enlarged photos), large, memory, cuts.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from contract import preprocessing
from contract.errors import ImageError
from contract.images import Picture, decode, decode_reduced, inspect, resampling
from contract.images.resampling import simd
from contract.manifest import Manifest, Preprocessing
from contract.preprocessing import reference_pixels, resize_and_crop, resized_size

Pixels = NDArray[np.uint8]
Way = Callable[[bytes], Pixels]
CUTS = range(5, 100, 5)  # percent of a file's bytes that are kept
# Megapixels and size, all 4:3. 0.2 is about the size of a photo in ImageNet, 48 a phone's largest.
LARGE = {
    "0.2": (500, 375),
    "0.5": (816, 612),
    "1": (1155, 866),
    "12": (4000, 3000),
    "48": (8000, 6000),
}


def crop_corner(size: tuple[int, int], crop: int) -> tuple[int, int]:
    return round((size[0] - crop) / 2), round((size[1] - crop) / 2)


def decode_with_pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def decode_with_draft(data: bytes, side_px: int) -> Picture:
    """Decodes with Pillow's `draft`; the shorter side has at least `side_px` pixels."""
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        image.draft(None, (side_px, side_px))
        # The stored size goes along: the grid of resize and crop counts in full-size pixels.
        return Picture(image.convert("RGB"), size, round(max(size) / max(image.size)))


def decode_with_simplejpeg(data: bytes, **options: Any) -> Picture:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    return Picture(simplejpeg.decode_jpeg(data, "RGB", **options), (width, height))


def resized_by_pillow(way: Way) -> Way:
    def run(data: bytes) -> Pixels:
        # `resize_and_crop` falls back to Pillow where the vector library is not installed.
        resampling.simd = None
        try:
            return way(data)
        finally:
            resampling.simd = simd

    return run


class Ways:
    """The candidates, for one geometry."""

    def __init__(self, spec: Preprocessing) -> None:
        self.spec = spec

    def table(self) -> dict[str, Way]:
        """Returns the ways by name; the first is the reference."""
        spec = self.spec

        return {
            "Pillow: decode, resize, crop": self.reference,
            "Pillow: decode; columns outside dropped between passes": lambda data: reference_pixels(
                decode_with_pillow(data), spec
            ),
            "Pillow: decode; resize(box=)": lambda data: self.boxed(decode_with_pillow(data)),
            "Pillow: decode; resize(box=, reducing_gap=1)": lambda data: self.boxed(
                decode_with_pillow(data), 1.0
            ),
            "Pillow: decode; box in two passes": resized_by_pillow(
                lambda data: resize_and_crop(decode_with_pillow(data), spec)
            ),
            "simplejpeg; Pillow box in two passes": resized_by_pillow(
                lambda data: resize_and_crop(decode_with_simplejpeg(data), spec)
            ),
            "simplejpeg at M/8; Pillow box": self.scaled,
            "Pillow: decode; vectors, columns first": lambda data: resize_and_crop(
                decode_with_pillow(data), spec
            ),
            "simplejpeg; vectors, rows first": self.rows_first,
            "simplejpeg; vectors, columns first": lambda data: resize_and_crop(
                decode_with_simplejpeg(data), spec
            ),
            "the same, fast DCT": lambda data: resize_and_crop(
                decode_with_simplejpeg(data, fastdct=True), spec
            ),
            "the same, fast upsampling": lambda data: resize_and_crop(
                decode_with_simplejpeg(data, fastupsample=True), spec
            ),
            # Only the first row comes back: the shape differs, so the answers are not compared.
            "simplejpeg alone, no resize": lambda data: decode_with_simplejpeg(data).pixels[:1],  # type: ignore[index]
            "read_input with every check": lambda data: resize_and_crop(
                preprocessing.decode_file(inspect(data), spec), spec
            ),
        }

    def reference(self, data: bytes) -> Pixels:
        # timm's evaluation transform, which published accuracies refer to.
        image, crop = decode_with_pillow(data), self.spec.crop_size_px
        size = resized_size(image.size, self.spec)
        left, top = crop_corner(size, crop)

        resized = image.resize(size, preprocessing.INTERPOLATIONS[self.spec.interpolation])
        return np.asarray(resized.crop((left, top, left + crop, top + crop)))

    def boxed(self, image: Image.Image, gap: float | None = None, whole: Any = None) -> Pixels:
        # Pillow crops inside its resize. `whole` is the full size of a picture decoded at a reduced
        # size.
        crop = self.spec.crop_size_px
        size = resized_size(whole or image.size, self.spec)

        # The box is in pixels of the decoded picture: left, right, top, bottom. Rounding could push
        # its far edge out of the picture, which Pillow refuses.
        box: list[float] = []
        for corner, resized, decoded in zip(crop_corner(size, crop), size, image.size, strict=True):
            step = decoded / resized
            box += [corner * step, min((corner + crop) * step, decoded)]

        method = preprocessing.INTERPOLATIONS[self.spec.interpolation]
        at = (box[0], box[2], box[1], box[3])
        return np.asarray(image.resize((crop, crop), method, box=at, reducing_gap=gap))

    def scaled(self, data: bytes) -> Pixels:
        """Decodes at the smallest M/8 that is large enough."""
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        # simplejpeg has a minimum for each side, and only the shorter one counts.
        least = self.spec.resize_size_px
        side = {"min_width": least} if width <= height else {"min_height": least}
        array = simplejpeg.decode_jpeg(data, "RGB", **side)
        return self.boxed(Image.fromarray(array), whole=(width, height))

    def rows_first(self, data: bytes) -> Pixels:
        """Resizes with one call of the vector library, which takes the rows first."""
        picture, crop = decode_with_simplejpeg(data), self.spec.crop_size_px
        size = resized_size(picture.size, self.spec)
        # Private on purpose: the span must be the one the service resizes.
        spans = [preprocessing._crop_span(picture, size, axis, crop) for axis in (0, 1)]
        (x, y), (right, bottom) = [s.start for s in spans], [s.stop for s in spans]
        width, height = picture.size

        kind = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
        options = simd.ResizeOptions(kind, crop_box=simd.CropBox(x, y, right - x, bottom - y))

        source = simd.ImageData(
            width, height, simd.PixelType.U8x3, np.asarray(picture.pixels).tobytes()
        )
        square = simd.ImageData(crop, crop, simd.PixelType.U8x3)
        simd.Resizer().resize(source, square, options)
        return np.frombuffer(square.get_buffer(), np.uint8).reshape(crop, crop, 3)


class Graphs:
    """Opened graphs that take uint8 pixels."""

    def __init__(self, folders: Iterable[Path]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = {
            folder.parent.name: ort.InferenceSession(folder / "model.onnx", options)
            for folder in folders
        }

    def __call__(self, rows: list[Pixels]) -> dict[str, NDArray[np.float32]]:
        """Returns probabilities, (N, C), by model."""
        return {
            name: np.concatenate(
                [
                    # Ten at a time: thousands in one batch would not fit into memory.
                    session.run(["probabilities"], {"image": np.stack(rows[i : i + 10])})[0]
                    for i in range(0, len(rows), 10)
                ]
            )
            for name, session in self._sessions.items()
        }

    def compare(self, rows: list[Pixels], expected: list[Pixels]) -> str:
        """Returns top-1 agreement and the largest and mean change of a probability, by model."""
        texts = []
        old, new = self(expected), self(rows)
        for name in old:
            same = 100 * (old[name].argmax(1) == new[name].argmax(1)).mean()
            change = np.abs(old[name] - new[name]).max(axis=1)  # (N,): of each photo's worst class
            texts.append(f"{name} {same:.2f} % |dp| {change.max():.3f} mean {change.mean():.4f}")
        return "; ".join(texts)


def timed(way: Callable[[bytes], Any], data: bytes) -> float:
    # CPU time of the thread, in ms: other load on the machine moves it less than wall time.
    start = time.thread_time()
    way(data)
    return 1e3 * (time.thread_time() - start)


def measure_ways(files: list[bytes], spec: Preprocessing, graphs: Graphs, rounds: int) -> None:
    """Prints one line for each way."""
    table = Ways(spec).table()
    reference = next(iter(table.values()))
    expected = [reference(data) for data in files]

    for name, way in table.items():
        ratios, times = [], []
        for _ in range(rounds):
            # Reference and candidate alternate, so that clock changes and caches hit both alike.
            pairs = [(timed(reference, data), timed(way, data)) for data in files]
            base, own = (sum(column) for column in zip(*pairs, strict=True))
            ratios.append(own / base)
            times.append(own / len(files))

        line = (
            f"{name:56} {statistics.median(times):6.3f} ms  ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, n = {rounds})"
        )

        rows = [way(data) for data in files]
        if rows[0].shape == expected[0].shape:
            distance = np.abs(np.stack(rows).astype(int) - np.stack(expected))
            line += f"  pixels {distance.max()} mean {distance.mean():.3f}; {graphs.compare(rows, expected)}"
        print(line, flush=True)


def enlarged(data: bytes, shorter_px: int) -> bytes:
    image = decode_with_pillow(data)
    factor = shorter_px / min(image.size)
    size = (
        max(shorter_px, round(image.width * factor)),
        max(shorter_px, round(image.height * factor)),
    )
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_reduced(files: list[bytes], spec: Preprocessing, graphs: Graphs) -> None:
    """Prints how a reduced decode changes the answers to photos of each size.

    A photo's shorter side is enlarged to reduction x margin x `resize_size_px`.
    """
    reference = Ways(spec).reference
    for reduction in (2, 4, 8):
        for margin in (1.0, 1.15, 1.5, 2.0):
            side_px = math.ceil(margin * spec.resize_size_px)
            large = [enlarged(data, reduction * side_px) for data in files]
            pictures = [decode_reduced(inspect(data), side_px) for data in large]
            assert all(picture.reduction == reduction for picture in pictures)

            rows = [resize_and_crop(picture, spec) for picture in pictures]
            compared = graphs.compare(rows, [reference(data) for data in large])
            print(f"1/{reduction}, margin {margin}: n = {len(files)}; {compared}", flush=True)


def large_photos(data: bytes) -> dict[str, bytes]:
    """Returns one photo in the sizes of `LARGE`, as JPEG of quality 90."""
    image = decode_with_pillow(data).resize(LARGE["48"], Image.Resampling.LANCZOS)
    # An enlarged photo is too smooth: it compresses and decodes unlike one from a camera.
    grain = np.random.default_rng(1).normal(0, 2, (image.height, image.width, 1)).astype(np.int16)
    noisy = np.clip(np.asarray(image).astype(np.int16) + grain, 0, 255).astype(np.uint8)

    image, photos = Image.fromarray(noisy), {}
    for name, size in LARGE.items():
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        photos[name] = buffer.getvalue()
    return photos


def measure_large(photos: dict[str, bytes], spec: Preprocessing, rounds: int) -> None:
    """Prints the CPU time by size; sizes and ways are interleaved."""
    ways: dict[str, Callable[[bytes], Any]] = {
        "Pillow": Ways(spec).reference,
        "Pillow draft": lambda data: resize_and_crop(
            decode_with_draft(data, 2 * spec.resize_size_px), spec
        ),
        "read_input": lambda data: resize_and_crop(
            preprocessing.decode_file(inspect(data), spec), spec
        ),
    }

    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, data in photos.items():
            for way, run in ways.items():
                found.setdefault((name, way), []).append(timed(run, data))

    middle = {key: statistics.median(times) for key, times in found.items()}
    for name, data in photos.items():
        print(
            f"{name} MP, {len(data) / 1e6:.2f} MB: "
            + "; ".join(
                f"{way} {middle[name, way]:.1f} ms, {middle[name, way] / middle['0.5', way]:.1f} x 0.5 MP"
                for way in ways
            )
            + f"; n = {rounds}"
        )


def measure_memory(photos: dict[str, bytes], spec: Preprocessing) -> None:
    for name, data in photos.items():
        # A fresh process each: a peak never falls, and freed memory is used again.
        for way in ("reference_pixels", "read_input"):
            code = [sys.executable, "-m", "benchmarks.preparation", "--part", "one", "--way", way]
            command = [*code, "-", "--spec", spec.model_dump_json()]
            done = subprocess.run(command, input=data, capture_output=True, check=True)  # noqa: S603
            print(f"{name} MP, {way}: +{done.stdout.decode().strip()} MB")


def peak_kib() -> int:
    # Not `getrusage`: its peak starts at the parent's.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure_one(way: str, spec: Preprocessing) -> None:
    """Prints the growth of this process's peak memory, in MB, over one preparation from stdin."""
    data = sys.stdin.buffer.read()
    small = io.BytesIO()
    Image.new("RGB", (500, 375)).save(small, "JPEG")
    ways: dict[str, Way] = {
        "reference_pixels": lambda data: reference_pixels(decode(data), spec),
        "read_input": lambda data: resize_and_crop(
            preprocessing.decode_file(inspect(data), spec), spec
        ),
    }

    # A small picture first, so that imports and lookup tables do not count.
    ways[way](small.getvalue())
    before = peak_kib()
    ways[way](data)
    print(round((peak_kib() - before) / 1024))


def count_cuts(files: list[bytes]) -> None:
    """Prints how many truncated files a full decode and a reduced one refuse."""

    def refused(read: Callable[[bytes], Any], data: bytes) -> bool:
        try:
            read(data)
        except ImageError:
            return True
        return False

    pieces = [data[: len(data) * percent // 100] for data in files for percent in CUTS]
    slow = sum(refused(decode, piece) for piece in pieces)
    fast = sum(refused(lambda data: decode_reduced(inspect(data), 256), piece) for piece in pieces)
    print(f"cuts: {len(pieces)} files; refused by decode {slow}, by decode_reduced {fast}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, help="a folder of JPEGs")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="a version's folder"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", action="append", default=[], help="default: all five")
    parser.add_argument("--way", help="for the process that the part memory starts")
    parser.add_argument("--spec", help="for the same process")

    arguments = parser.parse_args()

    if arguments.part == ["one"]:
        measure_one(arguments.way, Preprocessing.model_validate(json.loads(arguments.spec)))
        return

    parts = arguments.part or ["ways", "reduced", "large", "memory", "cuts"]
    manifest = Manifest.model_validate_json((arguments.model[0] / "manifest.json").read_bytes())
    spec, graphs = manifest.preprocessing, Graphs(arguments.model)

    files = [path.read_bytes() for path in sorted(arguments.photos.iterdir())]

    if "ways" in parts:
        measure_ways(files, spec, graphs, arguments.rounds)
    if "reduced" in parts:
        measure_reduced(files, spec, graphs)

    # Always the eighth photo, so that runs stay comparable.
    photos = large_photos(files[7]) if {"large", "memory"} & set(parts) else {}
    if "large" in parts:
        measure_large(photos, spec, arguments.rounds)
    if "memory" in parts:
        measure_memory(photos, spec)
    if "cuts" in parts:
        count_cuts(files)


if __name__ == "__main__":
    main()
