from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from service.http.connection.tls import CertificateUnusable, tls_context
from service.settings import Settings, SettingsInvalid, from_environment
from tests.problems import MARKER


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, its key in three forms, another key, and a password."""
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    trustme.CA().private_key_pem.write_to_path(folder / "other.pem")

    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(MARKER.encode()),
    )
    (folder / "encrypted.pem").write_bytes(encrypted)
    (folder / "password").write_text(f"{MARKER}\n", encoding="utf-8")
    return folder


def settings_of(files: Path, **settings: str) -> Settings:
    return Settings(
        **{
            name: value if name == "ssl_keyfile_password" else files / value
            for name, value in settings.items()
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"},
        {"ssl_certfile": "both.pem"},
        {
            "ssl_certfile": "cert.pem",
            "ssl_keyfile": "encrypted.pem",
            "ssl_keyfile_password_file": "password",
        },
        {
            "ssl_certfile": "cert.pem",
            "ssl_keyfile": "encrypted.pem",
            "ssl_keyfile_password": MARKER,
        },
    ],
)
def test_tls_certificate_and_key_are_loaded(files, settings):
    assert tls_context(settings_of(files, **settings)) is not None


def test_tls_is_off_by_default():
    assert tls_context(Settings()) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"ssl_certfile": "none.pem"},
        {"ssl_certfile": "cert.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "other.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "none.pem"},
        {"ssl_certfile": "key.pem", "ssl_keyfile": "key.pem"},
        {"ssl_certfile": "password"},
        {"ssl_certfile": "."},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "encrypted.pem"},
        {
            "ssl_certfile": "cert.pem",
            "ssl_keyfile": "encrypted.pem",
            "ssl_keyfile_password": f"no{MARKER}",
        },
        {
            "ssl_certfile": "cert.pem",
            "ssl_keyfile": "encrypted.pem",
            "ssl_keyfile_password_file": "none",
        },
        {"ssl_certfile": "both.pem", "ssl_keyfile_password": "x" * 1024},
    ],
)
def test_tls_files_that_cannot_be_used_refused_without_the_password(files, settings):
    with pytest.raises(CertificateUnusable) as refused:
        tls_context(settings_of(files, **settings))

    assert MARKER not in str(refused.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["keyfile"], "set --ssl-certfile"),
        (["keyfile_password"], "set --ssl-certfile"),
        (
            ["certfile", "keyfile_password", "keyfile_password_file"],
            "set CONVSERVE_SSL_KEYFILE_PASSWORD or CONVSERVE_SSL_KEYFILE_PASSWORD_FILE, not both",
        ),
    ],
    ids=["key", "password", "two-passwords"],
)
def test_tls_settings_that_contradict_each_other_refused(names, message):
    with pytest.raises(SettingsInvalid, match=message):
        from_environment({f"CONVSERVE_SSL_{name.upper()}": "x" for name in names})
