"""Documents that are written once and sent many times.

Building the labels of 1,000 classes takes 8 ms of the event loop, and the list of models 30 ms. Anybody
may ask for them at any rate, so they must cost as little as a health check.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

from starlette.responses import Response


class PreparedDocuments:
    """JSON documents by what they describe; they go when it goes."""

    def __init__(self) -> None:
        # Weak, because a repository that was replaced must not stay in memory with its sessions.
        self._of: WeakKeyDictionary[Hashable, dict[Hashable, bytes]] = WeakKeyDictionary()

    def response(
        self, described: Hashable, key: Hashable, write: Callable[[], bytes | str]
    ) -> Response:
        """Returns a document as a response.

        Args:
            described: an immutable object that the document is about.
            key: tells the documents about one object apart; whatever else is in the document has to
                be in the key.
            write: writes the document, if that has not been done.
        """
        documents = self._of.setdefault(described, {})
        body = documents.get(key)
        if body is None:
            written = write()
            body = documents[key] = written.encode() if isinstance(written, str) else written
        return Response(body, media_type="application/json")
