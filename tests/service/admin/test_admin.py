"""The application of the admin port, with a model repository on disk and no running service."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.routing import Router
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.errors import GraphMismatch
from contract.repository.changes import read_state
from contract.repository.file import read_repository_file
from contract.repository.listing import Listing, list_repository
from service.admin.actions import AdminActions, AdminPort, ServedState
from service.admin.app import create_admin_app
from service.admin.requests import requested_by
from service.admin.token import AdminToken
from service.admin.verbs import MODEL_VERBS
from service.errors import ProviderUnavailable
from service.models.changelog import ChangeLog
from service.system.metrics import Metrics
from tests import tinymodel
from tests.problems import MARKER, assert_problem

TOKEN = f"{MARKER}-admin-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PIN = "/v1/admin/models/tiny/pin"
POSTS = [
    *(f"/v1/admin/models/tiny/{verb}" for verb in MODEL_VERBS),
    "/v1/admin/default",
    "/v1/admin/reload",
]
ROUTES = [
    *(("GET", path) for path in ("/v1/admin/models", "/v1/admin/changes")),
    *(("POST", path) for path in POSTS),
]


class FakeService:
    """Serves what the repository on disk says, without loading anything."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.file = models_dir / "repository.toml"
        self.loaded: set[tuple[str, int]] = set()
        self.polls = 0
        self.poll_ends = asyncio.Event()
        self.poll_ends.set()
        self.verified: list[tuple[str, int]] = []
        self.proving = threading.Semaphore(0)  # released when a proof begins
        self.proof_ends = asyncio.Event()
        self.proof_ends.set()
        self.verify_error: Exception | None = None
        self.failures: dict[tuple[str, int], str] = {}
        self.default: str | None = None  # without one in the file
        self.last_polled: ServedState | None = None  # in place of what is on disk
        self.listed = 0
        self.metrics = Metrics()
        self.changes = ChangeLog()

    def state(self) -> ServedState:
        if self.last_polled is not None:
            return self.last_polled
        state = read_state(self.models_dir, self.file, self.failures, self.default)
        loaded = frozenset(self.loaded)
        return ServedState(state.file, state.decision, loaded)

    def list(self) -> Listing:
        self.listed += 1
        return list_repository(self.models_dir)

    async def reload(self) -> None:
        await self.poll_ends.wait()
        self.polls += 1

    async def verify(self, name: str, number: int) -> None:
        self.verified.append((name, number))
        self.proving.release()
        await self.proof_ends.wait()
        if self.verify_error is not None:
            raise self.verify_error

    def app(self, poll_timeout_s: float = 20) -> ASGIApp:
        actions = AdminActions(
            self.models_dir,
            self.file,
            listing=self.list,
            state=self.state,
            reload=self.reload,
            verify=self.verify,
        )
        token = AdminToken(SecretStr(TOKEN), None)
        port = AdminPort(actions, self.changes, token, self.metrics, poll_timeout_s)
        app = create_admin_app(port)

        # The test client needs a lifespan to keep one event loop for all requests.
        async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
            await (Router() if scope["type"] == "lifespan" else app)(scope, receive, send)

        return with_lifespan

    def count(self, outcome: str) -> float | None:
        labels = {"outcome": outcome}
        return self.metrics._registry.get_sample_value("convserve_admin_requests_total", labels)

    def answer(self) -> int | None:
        return read_state(self.models_dir, self.file).decision.models["tiny"].answer


@pytest.fixture
def service(tmp_path: Path) -> FakeService:
    models_dir = tmp_path / "models"
    for version in (1, 2, 3):
        tinymodel.write_version(models_dir, version=version)
    tinymodel.write_version(models_dir, name="other")
    return FakeService(models_dir)


@pytest.fixture
def admin(service: FakeService) -> Iterator[TestClient]:
    with TestClient(service.app(), headers=BEARER, client=("10.0.0.1", 1)) as client:
        yield client


# The token


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("PUT", "/v1/admin/models")])
@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
    ids=["none", "empty", "wrong", "basic", "bare"],
)
def test_admin_request_without_the_token_is_unauthorized(service, method, path, header):
    client = TestClient(service.app(), headers=header)

    response = client.request(method, path, content=b"" if method == "GET" else b"{}")

    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert (service.polls, service.verified, service.file.exists()) == (0, [], False)


def test_admin_request_with_two_tokens_is_unauthorized(admin):
    headers = [("Authorization", BEARER["Authorization"]), ("Authorization", "Bearer x")]

    assert admin.get("/v1/admin/models", headers=headers).status_code == 401


def test_admin_scheme_is_case_insensitive(admin):
    header = {"Authorization": f"bearer  {TOKEN}"}

    assert admin.get("/v1/admin/models", headers=header).status_code == 200


def test_admin_wrong_tokens_are_logged_once_for_many_and_never_shown(service, caplog):
    client = TestClient(service.app())

    with caplog.at_level("DEBUG"):
        for number in range(5):
            client.get("/v1/admin/models", headers={"Authorization": f"Bearer {MARKER}{number}"})

    warnings = [line for line in caplog.records if line.levelname == "WARNING"]
    assert [line.message for line in warnings] == ["admin request without a valid token"]
    assert MARKER not in "".join(str(line.__dict__) for line in caplog.records)
    assert service.count("unauthorized") == 5


# What is served


def test_admin_shows_models_and_the_file(service, admin):
    service.loaded = {("tiny", 3), ("other", 1)}
    (service.models_dir / "tiny" / "2" / "manifest.json").write_text("{")
    service.file.write_text('default = "tiny"\n[models.tiny]\naliases = { stable = 1 }\n')

    document = admin.get("/v1/admin/models").json()

    other, tiny = document["models"]
    assert document["default"] == "tiny"
    assert document["file"]["path"] == str(service.file)
    assert len(document["file"]["sha256"]) == 64
    assert (other["name"], tiny["name"]) == ("other", "tiny")
    assert (tiny["answers"], tiny["loaded"], tiny["aliases"]) == ("3", ["3"], {"stable": "1"})
    assert list(tiny["failed"]) == ["2"]


# Changes


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("tiny/pin", {"version": 1}, 1),
        ("tiny/pin", {"version": "1"}, 1),
        ("tiny/promote", {"version": 2}, 2),
        ("tiny/unpin", {}, 4),
        ("tiny/alias", {"alias": "stable", "version": 2}, 3),
        ("tiny/alias", {"alias": "old", "version": None}, 3),
        ("tiny/load", {"version": 4}, 3),
        ("tiny/unload", {"version": 2}, 3),
        ("other/unload", {}, 3),
    ],
)
def test_admin_verb_changes_the_file(service, admin, path, body, answer):
    tinymodel.write_version(service.models_dir, version=4)
    service.file.write_text(
        '# kept\ndefault = "tiny"\n[models.tiny]\nanswer = 3\nload = [2]\naliases = { old = 1 }\n'
    )

    response = admin.post(f"/v1/admin/models/{path}", json=body)

    document = response.json()
    assert response.status_code == 200, document
    assert service.file.read_text().startswith("# kept")
    assert service.answer() == answer
    assert document["change"]["outcome"] == "changed"
    assert document["change"]["file_sha256_after"] == document["served"]["file"]["sha256"]
    assert service.polls == 1


def test_admin_change_uses_the_listing_that_the_service_remembers(service, admin):
    assert admin.post(PIN, json={"version": 1}).status_code == 200

    assert service.listed == 2  # before the proof, and again when it is written


def test_admin_rollback_returns_to_the_version_before(service, admin):
    admin.post(PIN, json={"version": 1})

    change = admin.post("/v1/admin/models/tiny/rollback").json()["change"]

    assert service.answer() == 3
    assert (change["version_before"], change["version_after"]) == ("1", "3")


def test_admin_default_is_written(service, admin):
    response = admin.post("/v1/admin/default", json={"model": "other"})

    assert response.json()["change"]["model"] == "other"
    assert read_repository_file(service.file).parsed.default == "other"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("models/none/pin", {"version": 1}, 404, "model_not_found"),
        ("models/../pin", {"version": 1}, 404, "not_found"),
        ("models/%2e%2e/pin", {"version": 1}, 404, "model_not_found"),
        ("default", {"model": MARKER}, 404, "model_not_found"),
        ("models/tiny/pin", {"version": 9}, 409, "change_refused"),
        ("models/tiny/pin", {"version": 10**400}, 422, "invalid_parameter"),
        ("models/other/rollback", {}, 409, "change_refused"),
        ("models/tiny/pin", {}, 422, "invalid_parameter"),
        ("models/tiny/pin", {"version": 0}, 422, "invalid_parameter"),
        ("models/tiny/pin", {"version": True}, 422, "invalid_parameter"),
        ("models/tiny/pin", {"version": 1.0}, 422, "invalid_parameter"),
        ("models/tiny/pin", {"version": MARKER}, 422, "invalid_parameter"),
        ("models/tiny/pin", {"version": 1, MARKER: 1}, 422, "invalid_parameter"),
        ("models/tiny/unpin", {"version": 1}, 422, "invalid_parameter"),
        ("models/tiny/pin", [MARKER], 422, "invalid_parameter"),
        ("reload", {MARKER: 1}, 422, "invalid_parameter"),
        ("reload?wait=perhaps", {}, 422, "invalid_parameter"),
        (f"reload?{MARKER}=1", {}, 422, "invalid_parameter"),
        (f"models/tiny/{MARKER}", {}, 404, "not_found"),
    ],
)
def test_admin_bad_request_refused_and_nothing_changed(service, admin, path, body, status, code):
    response = admin.post(f"/v1/admin/{path}", content=json.dumps(body))

    assert_problem(response, status, code)
    assert not service.file.exists()
    assert service.count("refused") == 1


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"version": NaN}', b"[" * 50_000])
def test_admin_body_that_is_not_json_is_malformed(admin, body):
    assert_problem(admin.post(PIN, content=body), 400, "malformed_request")


@pytest.mark.parametrize("pieces", [1, 70], ids=["declared", "chunked"])
def test_admin_large_body_refused(admin, pieces):
    whole = b" " * 70_000
    content = whole if pieces == 1 else (whole[:1_000] for _ in range(pieces))

    assert_problem(admin.post(PIN, content=content), 413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PIN, "POST"),
        ("DELETE", "/v1/admin/changes", "GET, HEAD"),
        (MARKER, "/v1/admin/reload", "POST"),
    ],
)
def test_admin_wrong_method_answers_405_with_the_allowed_one(admin, method, path, allowed):
    response = admin.request(method, path)

    assert_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == set(allowed.split(", "))


def test_admin_file_that_cannot_be_written_refused_with_the_lines_to_write(service):
    # Root may write into any folder, so this one does not exist.
    service.file = service.models_dir / "none" / "repository.toml"
    client = TestClient(service.app(), headers=BEARER)

    response = client.post(PIN, json={"version": 1})

    document = response.json()
    assert (response.status_code, document["code"]) == (409, "repository_file_unwritable")
    assert str(service.file) in document["detail"]
    assert "answer = 1" in document["detail"]
    (entry,) = service.changes.entries()
    assert (entry["outcome"], entry["summary"]) == ("refused", document["detail"])


def test_admin_file_that_is_not_valid_refused_with_its_problem(service, admin):
    service.file.write_text("default = 1")

    response = admin.post("/v1/admin/models/tiny/unpin")

    assert_problem(response, 409, "repository_file_invalid")
    assert "default: a model's name" in response.json()["detail"]


def test_admin_repository_that_is_gone_is_an_error_with_its_path(service, admin):
    service.models_dir.rename(service.models_dir.with_name("elsewhere"))

    response = admin.post("/v1/admin/models/tiny/unpin")

    assert_problem(response, 500, "repository_unreadable")
    assert service.count("failed") == 1


# Proving


def test_admin_version_is_proven_before_it_is_pinned(service, admin):
    admin.post(PIN, json={"version": 1})

    assert service.verified == [("tiny", 1)]


def test_admin_version_that_is_loaded_is_not_proven_again(service, admin):
    service.loaded = {("tiny", 1)}

    admin.post(PIN, json={"version": 1})

    assert (service.verified, service.answer()) == ([], 1)


def test_admin_change_does_not_wait_for_the_proof_of_another(service, admin):
    service.proof_ends.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(admin.post, PIN, json={"version": 1})
        service.proving.acquire()

        unpinned = admin.post("/v1/admin/models/tiny/alias", json={"alias": "old", "version": None})
        defaulted = admin.post("/v1/admin/default", json={"model": "other"})
        waited = slow.done()
        admin.portal.call(service.proof_ends.set)

    assert (unpinned.status_code, defaulted.status_code, waited) == (200, 200, False)
    assert (slow.result().status_code, service.answer()) == (200, 1)


def test_admin_proofs_are_two_at_a_time(service, admin):
    service.proof_ends.clear()
    with ThreadPoolExecutor(3) as pool:
        for number in (1, 2, 1):
            pool.submit(admin.post, PIN, json={"version": number})
        service.proving.acquire()
        service.proving.acquire()
        third = service.proving.acquire(timeout=0.05)
        admin.portal.call(service.proof_ends.set)

    assert not third
    assert len(service.verified) == 3


@pytest.mark.parametrize(
    ("verb", "body"),
    [("unpin", {}), ("unload", {"version": 2}), ("alias", {"alias": "old", "version": None})],
)
def test_admin_change_that_names_no_version_proves_none(service, admin, verb, body):
    service.file.write_text("[models.tiny]\nanswer = 3\nload = [2]\naliases = { old = 1 }\n")

    response = admin.post(f"/v1/admin/models/tiny/{verb}", json=body)

    assert (response.status_code, service.verified) == (200, [])


def test_admin_rollback_proves_the_version_before(service, admin):
    service.file.write_text("[models.tiny]\nanswer = 3\nprevious = 2\n")

    admin.post("/v1/admin/models/tiny/rollback")

    assert service.verified == [("tiny", 2)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GraphMismatch("it has two outputs"), "tiny/1 cannot be served.*it has two outputs"),
        (ProviderUnavailable("no CUDA"), "tiny/1 cannot be served.*no CUDA"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_admin_version_that_fails_is_not_pinned(service, admin, error, reason):
    service.verify_error = error

    response = admin.post(PIN, json={"version": 1})

    assert_problem(response, 409, "change_refused")
    assert re.search(reason, response.json()["detail"])
    assert not service.file.exists()


def test_admin_unexpected_error_is_recorded_and_answered(service, admin):
    service.verify_error = KeyError(MARKER)

    response = admin.post(PIN, json={"version": 1})

    assert_problem(response, 500, "internal_error")
    assert [one["outcome"] for one in service.changes.entries()] == ["failed"]


# Waiting


def test_admin_change_that_does_not_wait_is_accepted(service, admin):
    service.poll_ends.clear()

    response = admin.post(f"{PIN}?wait=false", json={"version": 1})

    assert (response.status_code, service.answer(), service.polls) == (202, 1, 0)


def test_admin_change_whose_poll_takes_too_long_is_accepted(service):
    service.poll_ends.clear()
    with TestClient(service.app(poll_timeout_s=0.01), headers=BEARER) as client:
        response = client.post(PIN, json={"version": 1})

    assert (response.status_code, service.answer()) == (202, 1)


def test_admin_reload_polls_and_shows_what_is_served(service, admin):
    response = admin.post("/v1/admin/reload")

    assert (response.status_code, service.polls) == (200, 1)
    assert [one["name"] for one in response.json()["served"]["models"]] == ["other", "tiny"]


# The log of changes


def test_admin_changes_say_who_and_what(admin):
    admin.post(PIN, json={"version": 1}, headers={"X-Admin-User": "ann"})
    admin.post(PIN, json={"version": 9})

    refused, changed = admin.get("/v1/admin/changes").json()["changes"]

    assert (changed["who"], changed["verb"], changed["model"]) == ("10.0.0.1 (ann)", "pin", "tiny")
    assert (changed["version_before"], changed["version_after"]) == ("3", "1")
    assert changed["file_sha256_before"] is None
    assert (refused["who"], refused["outcome"]) == ("10.0.0.1", "refused")


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (b"a" * 1_000, "a" * 64),
        (b"a\tb\x1b[31m", r"a\tb\x1b[31m"),
        ("jürgen".encode(), "jürgen"),
        ("a\u202eb".encode(), r"a\u202eb"),
        (b"\xff", r"\xff"),
    ],
    ids=["long", "control", "umlaut", "bidirectional", "not_utf_8"],
)
def test_admin_user_is_bounded_and_escaped(header, shown):
    scope = {"type": "http", "client": ("10.0.0.1", 1), "headers": [(b"x-admin-user", header)]}

    assert requested_by(Request(scope)) == f"10.0.0.1 ({shown})"


def test_admin_rollback_goes_back_from_the_version_that_answers(service, admin):
    service.failures[("tiny", 3)] = "tiny/3: model.onnx is not the file that was published"

    change = admin.post("/v1/admin/models/tiny/rollback").json()["change"]

    assert (change["version_before"], change["version_after"]) == ("2", "1")


def test_admin_version_that_failed_is_proven_again_before_it_is_pinned(service, admin):
    service.failures[("tiny", 3)] = "tiny/3: there was no memory"

    change = admin.post(PIN, json={"version": 3}).json()["change"]

    assert service.verified == [("tiny", 3)]
    assert change["version_after"] == "3"


def test_admin_default_model_of_the_process_is_not_unloaded(service, admin):
    service.default = "tiny"

    assert_problem(admin.post("/v1/admin/models/tiny/unload"), 409, "change_refused")
    assert not service.file.exists()


def test_admin_default_that_cannot_answer_refused(service, admin):
    service.failures[("other", 1)] = "other/1: broken"

    refused = admin.post("/v1/admin/default", json={"model": "other"})

    assert_problem(refused, 409, "change_refused")
    assert "other/1: broken" in refused.json()["detail"]


def test_admin_default_that_nothing_is_known_of_is_proven(service, admin):
    service.last_polled = service.state()
    tinymodel.write_version(service.models_dir, name="new")
    service.verify_error = GraphMismatch("it is broken")

    refused = admin.post("/v1/admin/default", json={"model": "new"})

    assert_problem(refused, 409, "change_refused")
    assert service.verified == [("new", 1)]


def test_admin_versions_may_have_as_many_digits_as_their_folders(service, admin):
    number = 20261129163500
    tinymodel.write_version(service.models_dir, version=number)

    assert admin.post(PIN, json={"version": str(number)}).status_code == 200
    assert service.answer() == number


def test_admin_change_that_is_there_already_is_recorded_as_unchanged(admin):
    admin.post("/v1/admin/default", json={"model": "other"})

    again = admin.post("/v1/admin/default", json={"model": "other"}).json()["change"]

    assert again["outcome"] == "unchanged"
    assert again["file_sha256_before"] == again["file_sha256_after"]


# Many at once


def test_admin_many_changes_at_once_leave_the_last_one_in_the_file(service, admin):
    def change(number: int):
        verb = ("pin", "promote", "rollback", "unpin", "load", "unload")[number % 6]
        body = {"version": number % 3 + 1} if verb not in ("rollback", "unpin") else {}
        return admin.post(f"/v1/admin/models/tiny/{verb}", json=body).status_code

    with ThreadPoolExecutor(64) as pool:
        statuses = set(pool.map(change, range(128)))

    entries = [one for one in service.changes.entries() if one["outcome"] == "changed"]
    digests = [(one["file_sha256_before"], one["file_sha256_after"]) for one in entries]
    assert statuses <= {200, 409}
    assert len(service.changes.entries()) == 128
    assert all(newer[0] == older[1] for newer, older in pairwise(digests))
    assert admin.get("/v1/admin/models").json()["file"]["sha256"] == digests[0][1]


# Metrics


def test_admin_requests_are_counted_apart(service, admin):
    admin.get("/v1/admin/models")
    admin.get("/v1/admin/none")

    page = service.metrics.render().decode()

    assert [service.count(one) for one in ("ok", "unauthorized", "refused", "failed")] == [
        1,
        0,
        1,
        0,
    ]
    assert "/v1/admin" not in page
