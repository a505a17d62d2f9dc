from __future__ import annotations

import weakref

import pytest
from starlette.requests import Request

from service.api.prepared import PreparedDocuments

REQUEST = Request({"type": "http", "headers": []})


class Described:
    """Anything that documents are about."""


def write_counted(
    documents: PreparedDocuments, described: object, key: object
) -> tuple[bytes, int]:
    """Asks for a document; returns it, and how often it was written for this."""
    written: list[str] = []

    def write() -> str:
        written.append(f'"{key}"')
        return written[-1]

    return bytes(documents.response(REQUEST, described, key, write).body), len(written)


def test_prepared_document_is_written_once():
    documents, described = PreparedDocuments(), Described()

    answers = [write_counted(documents, described, "a") for _ in range(3)]

    assert answers == [(b'"a"', 1), (b'"a"', 0), (b'"a"', 0)]


def test_prepared_documents_differ_by_key_and_by_what_they_describe():
    documents, one, other = PreparedDocuments(), Described(), Described()

    answers = [write_counted(documents, *key) for key in ((one, 1), (one, 2), (other, 1), (one, 1))]

    assert answers == [(b'"1"', 1), (b'"2"', 1), (b'"1"', 1), (b'"1"', 0)]


@pytest.mark.usefixtures("no_collections")
def test_prepared_documents_do_not_keep_what_they_describe():
    documents, described = PreparedDocuments(), Described()
    write_counted(documents, described, "a")
    gone = weakref.ref(described)

    del described

    assert gone() is None
