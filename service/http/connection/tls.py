"""TLS of the public port, from a certificate and its key in files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from service.settings import Settings

_MAX_PASSWORD_BYTES: Final = 1024  # OpenSSL's limit


class CertificateUnusable(Exception):
    """The certificate, its key or the key's password cannot be used; the message says which."""


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Returns the context for the settings, None without a certificate.

    Raises:
        CertificateUnusable: the files cannot be read or do not belong together.
    """
    if settings.ssl_certfile is None:
        return None
    password = _password(settings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and 1.3
    context.set_alpn_protocols(["http/1.1"])
    key = settings.ssl_keyfile or settings.ssl_certfile
    for file in (settings.ssl_certfile, key):
        _check_readable(file)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.ssl_certfile, key, password)
    except ssl.SSLError as error:
        reason = f" ({error.reason})" if error.reason else ""
        raise CertificateUnusable(
            f"{settings.ssl_certfile} and {key} are not a PEM certificate and its key, or the key has "
            f"another password{reason}; see CONVSERVE_SSL_CERTFILE, CONVSERVE_SSL_KEYFILE and "
            "CONVSERVE_SSL_KEYFILE_PASSWORD"
        ) from None
    return context


def _password(settings: Settings) -> bytes:
    if settings.ssl_keyfile_password is not None:
        password = settings.ssl_keyfile_password.get_secret_value().encode(errors="surrogateescape")
    elif settings.ssl_keyfile_password_file is not None:
        _check_readable(settings.ssl_keyfile_password_file)
        with settings.ssl_keyfile_password_file.open("rb") as file:
            password = file.read(_MAX_PASSWORD_BYTES + 1).rstrip(b"\r\n")
    else:
        return b""
    if len(password) >= _MAX_PASSWORD_BYTES:
        raise CertificateUnusable(f"the key's password has {_MAX_PASSWORD_BYTES} bytes or more")
    return password


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise CertificateUnusable(f"{file} cannot be read: {error.strerror}") from error
