"""Mixed uploads: photographs, other formats, pictures of 12 and 48 megapixels, broken files."""

from __future__ import annotations

import http.client
import io
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from PIL import Image

from benchmarks.photos import corrupt, read_photos

_LARGE: Final = {12: (4000, 3000), 48: (8000, 6000)}  # megapixels and sides
_SHARES: Final = {  # percent
    "photograph": 75,
    "png": 8,
    "webp": 6,
    "12 megapixels": 4,
    "48 megapixels": 1,
    "12 megapixels progressive": 0.5,
    "12 megapixels png": 0.5,
    "broken": 5,
}


def mixed_pictures(folder: Path, n: int, seed: int = 0) -> list[bytes]:
    """Returns `n` files in a random order that depends only on `seed`."""
    photos = read_photos(folder)
    small = photos[:20]
    kinds = {
        "photograph": photos,
        "png": [_convert(one, "PNG") for one in small],
        "webp": [_convert(one, "WEBP") for one in small],
        "12 megapixels": [_convert(one, "JPEG", _LARGE[12]) for one in small[:3]],
        "48 megapixels": [_convert(one, "JPEG", _LARGE[48]) for one in small[:2]],
        "12 megapixels progressive": [_convert(photos[0], "JPEG", _LARGE[12], progressive=True)],
        "12 megapixels png": [_convert(photos[1], "PNG", _LARGE[12], compress_level=1)],
        "broken": corrupt(photos, 30, seed),
    }
    random = Random(seed)  # noqa: S311 - repeatable
    chosen = random.choices(list(_SHARES), list(_SHARES.values()), k=n)
    return [random.choice(kinds[kind]) for kind in chosen]


def _convert(
    photo: bytes, to: str, size: tuple[int, int] | None = None, **options: object
) -> bytes:
    with Image.open(io.BytesIO(photo)) as opened:
        picture = opened.convert("RGB")
    if size is not None:
        picture = picture.resize(size)
    out = io.BytesIO()
    picture.save(out, to, **options)
    return out.getvalue()


def get_status(port: int, path: str) -> int:
    """Returns the status; 0 without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def wait_until_ready(port: int, limit_s: float = 60.0) -> None:
    """Returns at the first 200 of `/readyz`; raises TimeoutError."""
    end_s = time.monotonic() + limit_s
    while get_status(port, "/readyz") != 200:
        if time.monotonic() > end_s:
            raise TimeoutError(f"no 200 from /readyz within {limit_s:g} s")
        time.sleep(0.01)


def post(connection: http.client.HTTPConnection, picture: bytes) -> int:
    """Returns the status; 0 without an answer."""
    try:
        connection.request("POST", "/v1/classify", picture)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0
    return response.status


class Clients:
    """Closed-loop clients that post pictures in turn, until `stop` or all are sent.

    Attributes:
        statuses: how many requests ended with each status; 0 without an answer.
    """

    def __init__(self, port: int, pictures: Sequence[bytes], count: int, *, repeat: bool) -> None:
        self.statuses: Counter[int] = Counter()
        self._port, self._pictures, self._repeat = port, pictures, repeat
        self._sent = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._post) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        self._over.set()
        self.wait()

    def _next(self) -> bytes | None:
        with self._lock:
            index, self._sent = self._sent, self._sent + 1
        if self._over.is_set() or (index >= len(self._pictures) and not self._repeat):
            return None
        return self._pictures[index % len(self._pictures)]

    def _post(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while (picture := self._next()) is not None:
            status = post(connection, picture)
            with self._lock:
                self.statuses[status] += 1
        connection.close()
