"""Measures ways from the bytes of a JPEG to the pixels of a graph: CPU time, pixels, answers.

    python -m benchmarks.preparation PHOTOS --model models/efficientnet_lite0/1 [--model ...]

Every way is timed beside Pillow's full decode + resize + crop, one after the other on each photo, in
CPU time of the thread; a ratio is the median over rounds. Answers are compared with those to
Pillow's pixels. `--part` chooses: ways, reduced (on enlarged photos), large, memory, cuts.
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
CUTS = range(5, 100, 5)
LARGE = {
    "0.2": (500, 375),
    "0.5": (816, 612),
    "1": (1155, 866),
    "12": (4000, 3000),
    "48": (8000, 6000),
}


def offsets(size: tuple[int, int], crop: int) -> tuple[int, int]:
    """Returns the corner of the crop in a resized picture."""
    return round((size[0] - crop) / 2), round((size[1] - crop) / 2)


def plain(data: bytes) -> Image.Image:
    """Decodes with Pillow as any tutorial does."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def drafted(data: bytes, side_px: int) -> Picture:
    """Decodes with Pillow at a reduced size, the shorter side of at least `side_px`."""
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        image.draft(None, (side_px, side_px))
        return Picture(image.convert("RGB"), size, round(max(size) / max(image.size)))


def arrays(data: bytes, **options: Any) -> Picture:
    """Decodes with simplejpeg."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    return Picture(simplejpeg.decode_jpeg(data, "RGB", **options), (width, height))


def without_vectors(way: Way) -> Way:
    """Lets Pillow resize."""

    def run(data: bytes) -> Pixels:
        resampling.simd = None
        try:
            return way(data)
        finally:
            resampling.simd = simd

    return run


class Ways:
    """What was tried, for one geometry."""

    def __init__(self, spec: Preprocessing) -> None:
        self.spec = spec

    def table(self) -> dict[str, Way]:
        """Returns the ways by name; the first is the reference."""
        spec = self.spec
        return {
            "Pillow: decode, resize, crop": self.reference,
            "Pillow: decode; columns outside dropped between passes": lambda data: reference_pixels(
                plain(data), spec
            ),
            "Pillow: decode; resize(box=)": lambda data: self.boxed(plain(data)),
            "Pillow: decode; resize(box=, reducing_gap=1)": lambda data: self.boxed(
                plain(data), 1.0
            ),
            "Pillow: decode; box in two passes": without_vectors(
                lambda data: resize_and_crop(plain(data), spec)
            ),
            "simplejpeg; Pillow box in two passes": without_vectors(
                lambda data: resize_and_crop(arrays(data), spec)
            ),
            "simplejpeg at M/8; Pillow box": self.scaled,
            "Pillow: decode; vectors, columns first": lambda data: resize_and_crop(
                plain(data), spec
            ),
            "simplejpeg; vectors, rows first": self.rows_first,
            "simplejpeg; vectors, columns first": lambda data: resize_and_crop(arrays(data), spec),
            "the same, fast DCT": lambda data: resize_and_crop(arrays(data, fastdct=True), spec),
            "the same, fast upsampling": lambda data: resize_and_crop(
                arrays(data, fastupsample=True), spec
            ),
            "simplejpeg alone, no resize": lambda data: arrays(data).pixels[:1],  # type: ignore[index]
            "read_input with every check": lambda data: resize_and_crop(
                preprocessing.decode_file(inspect(data), spec), spec
            ),
        }

    def reference(self, data: bytes) -> Pixels:
        """The pixels of timm's transform."""
        image, crop = plain(data), self.spec.crop_size_px
        size = resized_size(image.size, self.spec)
        left, top = offsets(size, crop)
        resized = image.resize(size, preprocessing.INTERPOLATIONS[self.spec.interpolation])
        return np.asarray(resized.crop((left, top, left + crop, top + crop)))

    def boxed(self, image: Image.Image, gap: float | None = None, whole: Any = None) -> Pixels:
        """Crops inside of one call of Pillow's resize."""
        crop = self.spec.crop_size_px
        size = resized_size(whole or image.size, self.spec)
        box: list[float] = []
        for corner, resized, decoded in zip(offsets(size, crop), size, image.size, strict=True):
            step = decoded / resized
            box += [corner * step, min((corner + crop) * step, decoded)]
        method = preprocessing.INTERPOLATIONS[self.spec.interpolation]
        at = (box[0], box[2], box[1], box[3])
        return np.asarray(image.resize((crop, crop), method, box=at, reducing_gap=gap))

    def scaled(self, data: bytes) -> Pixels:
        """Decodes at the smallest M/8 that is large enough."""
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        least = self.spec.resize_size_px
        side = {"min_width": least} if width <= height else {"min_height": least}
        array = simplejpeg.decode_jpeg(data, "RGB", **side)
        return self.boxed(Image.fromarray(array), whole=(width, height))

    def rows_first(self, data: bytes) -> Pixels:
        """Resizes both sides in one call of the vector library, which takes the rows first."""
        picture, crop = arrays(data), self.spec.crop_size_px
        size = resized_size(picture.size, self.spec)
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
    """Graphs that take uint8 pixels."""

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
                    session.run(["probabilities"], {"image": np.stack(rows[i : i + 10])})[0]
                    for i in range(0, len(rows), 10)
                ]
            )
            for name, session in self._sessions.items()
        }

    def compare(self, rows: list[Pixels], expected: list[Pixels]) -> str:
        """Returns agreement and the largest and mean change of a probability, by model."""
        texts = []
        old, new = self(expected), self(rows)
        for name in old:
            same = 100 * (old[name].argmax(1) == new[name].argmax(1)).mean()
            change = np.abs(old[name] - new[name]).max(axis=1)
            texts.append(f"{name} {same:.2f} % |dp| {change.max():.3f} mean {change.mean():.4f}")
        return "; ".join(texts)


def timed(way: Callable[[bytes], Any], data: bytes) -> float:
    """Returns the CPU milliseconds of the thread."""
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
            far = np.abs(np.stack(rows).astype(int) - np.stack(expected))
            line += f"  pixels {far.max()} mean {far.mean():.3f}; {graphs.compare(rows, expected)}"
        print(line, flush=True)


def enlarged(data: bytes, shorter_px: int) -> bytes:
    """Returns the photo as a larger JPEG."""
    image = plain(data)
    factor = shorter_px / min(image.size)
    size = (
        max(shorter_px, round(image.width * factor)),
        max(shorter_px, round(image.height * factor)),
    )
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_reduced(files: list[bytes], spec: Preprocessing, graphs: Graphs) -> None:
    """Prints how answers to photos enlarged to `margin` x reduction x resize_size_px change."""
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
    """Returns one photo in the sizes of `LARGE`, with grain of the largest, quality 90."""
    image = plain(data).resize(LARGE["48"], Image.Resampling.LANCZOS)
    grain = np.random.default_rng(1).normal(0, 2, (image.height, image.width, 1)).astype(np.int16)
    noisy = np.clip(np.asarray(image).astype(np.int16) + grain, 0, 255).astype(np.uint8)
    image, photos = Image.fromarray(noisy), {}
    for name, size in LARGE.items():
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        photos[name] = buffer.getvalue()
    return photos


def measure_large(photos: dict[str, bytes], spec: Preprocessing, rounds: int) -> None:
    """Prints CPU time by size, interleaved."""
    ways: dict[str, Callable[[bytes], Any]] = {
        "Pillow": Ways(spec).reference,
        "Pillow draft": lambda data: resize_and_crop(drafted(data, 2 * spec.resize_size_px), spec),
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
    """Prints how far one preparation lifts the peak of a fresh process."""
    for name, data in photos.items():
        for way in ("reference_pixels", "read_input"):
            code = [sys.executable, "-m", "benchmarks.preparation", "--part", "one", "--way", way]
            command = [*code, "-", "--spec", spec.model_dump_json()]
            done = subprocess.run(command, input=data, capture_output=True, check=True)  # noqa: S603
            print(f"{name} MP, {way}: +{done.stdout.decode().strip()} MB")


def peak_kib() -> int:
    """Returns the peak of this process's own memory; `getrusage` inherits that of the parent."""
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
    ways[way](small.getvalue())
    before = peak_kib()
    ways[way](data)
    print(round((peak_kib() - before) / 1024))


def count_cuts(files: list[bytes]) -> None:
    """Prints how many cut files are refused by Pillow and by the short way."""

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
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, help="a folder of JPEGs")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="a version's folder"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", action="append", default=[])
    parser.add_argument("--way")
    parser.add_argument("--spec")
    asked = parser.parse_args()
    if asked.part == ["one"]:
        measure_one(asked.way, Preprocessing.model_validate(json.loads(asked.spec)))
        return
    parts = asked.part or ["ways", "reduced", "large", "memory", "cuts"]
    manifest = Manifest.model_validate_json((asked.model[0] / "manifest.json").read_bytes())
    spec, graphs = manifest.preprocessing, Graphs(asked.model)
    files = [path.read_bytes() for path in sorted(asked.photos.iterdir())]
    if "ways" in parts:
        measure_ways(files, spec, graphs, asked.rounds)
    if "reduced" in parts:
        measure_reduced(files, spec, graphs)
    photos = large_photos(files[7]) if {"large", "memory"} & set(parts) else {}
    if "large" in parts:
        measure_large(photos, spec, asked.rounds)
    if "memory" in parts:
        measure_memory(photos, spec)
    if "cuts" in parts:
        count_cuts(files)


if __name__ == "__main__":
    main()
