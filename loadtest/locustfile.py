"""Locust users that classify pictures: raw body, multipart form, several in one request.

Locust runs in an environment of its own (requirements.txt), so this file imports nothing of the service.
"""

from __future__ import annotations

import json
import mimetypes
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment

PICTURES_PER_BATCH: Final = 4
_URL: Final = "/v1/classify"
_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".heic", ".heif", ".hif", ".avif"),
)
_EXAMPLES: Final = Path(__file__).absolute().parents[1] / "examples"
_REFUSED: Final = (
    503,
    504,
)  # no room or no time; every other error is a fault of client or service


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--photos",
        default=str(_EXAMPLES),
        env_var="LOCUST_PHOTOS",
        help="folder of the pictures to send, subfolders included",
    )


@events.init.add_listener
def check_photos(environment: Environment, **_: Any) -> None:
    try:
        find_photos(environment.parsed_options.photos)
    except OSError as error:
        sys.exit(f"locust: {error}")


class Client(FastHttpUser):
    """Sends its next request as soon as it has an answer: a closed loop."""

    connection_timeout = 10.0
    network_timeout = 310.0  # the service allows a request 300 s at most

    def on_start(self) -> None:
        # Locust's page can change the folder; an error here is shown under "Exceptions".
        self._photos = endless(find_photos(self.environment.parsed_options.photos))

    @task(8)
    def raw_body(self) -> None:
        _, data, media_type = self._next_file()

        with self.client.post(
            _URL, data, headers={"Content-Type": media_type}, name="raw body", catch_response=True
        ) as response:
            check(response, 1)

    @task(2)
    def form(self) -> None:
        self._post_form("multipart", 1)

    @task(1)
    def batch(self) -> None:
        self._post_form(f"multipart, {PICTURES_PER_BATCH} pictures", PICTURES_PER_BATCH)

    def _post_form(self, name: str, n_pictures: int) -> None:
        files = {f"image{number}": self._next_file() for number in range(n_pictures)}

        with self.client.post(_URL, files=files, name=name, catch_response=True) as response:
            check(response, n_pictures)

    def _next_file(self) -> tuple[str, bytes, str]:
        """Returns name, content and media type of the next picture."""
        photo = next(self._photos)
        media_type = mimetypes.guess_type(photo.name)[0] or "application/octet-stream"
        return photo.name, photo.read_bytes(), media_type


@cache
def find_photos(folder: str) -> list[Path]:
    files = Path(folder).expanduser().rglob("*")
    photos = [file for file in files if file.suffix.lower() in _SUFFIXES]
    if not photos:
        raise FileNotFoundError(f"no pictures in {folder}; name a folder of pictures with --photos")
    return photos


def endless(photos: list[Path]) -> Iterator[Path]:
    """Yields every picture once in random order, then all of them in another order, and so on."""
    while True:
        yield from random.sample(photos, len(photos))


def check(response: ResponseContextManager, n_pictures: int) -> None:
    """Marks a response as failed unless it has predictions for every picture.

    The failure is named after the service's error code, so that Locust counts by code.
    """
    if response.status_code == 0:
        return  # no response at all; Locust names the failure after the connection's error

    answer = parse(response.text)
    if response.status_code != 200:
        outcome = "refused" if response.status_code in _REFUSED else "failed"
        response.failure(
            f"{outcome}: {response.status_code} {answer.get('code', 'without a code')}"
        )
        return

    # Several pictures of a form are answered in `results`, a single one is the answer itself.
    results = answer.get("results", [answer])
    codes = sorted({result["error"]["code"] for result in results if result.get("error")})
    if codes:
        response.failure(f"failed: picture {', '.join(codes)}")
    elif len(results) != n_pictures or not all(result.get("predictions") for result in results):
        response.failure("failed: 200 without predictions for every picture")


def parse(text: str | None) -> dict[str, Any]:
    """Returns the JSON object in a body; an empty one for anything else, such as a proxy's page."""
    try:
        answer = json.loads(text or "")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
