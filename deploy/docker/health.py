"""The health check of the image: exit status 0 if the service is ready.

It asks where the settings say that the service listens: a port, with TLS or without, or a unix socket. Standard
library only, because it runs every few seconds.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys

TIMEOUT_S = 2


def connection() -> http.client.HTTPConnection:
    """Returns a connection to the service; a unix socket is connected already."""
    unix_socket = os.environ.get("CONVSERVE_UDS")
    if unix_socket:
        plain = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        plain.sock = socket.socket(socket.AF_UNIX)
        plain.sock.settimeout(TIMEOUT_S)
        plain.sock.connect(unix_socket)
        return plain

    port = os.environ.get("CONVSERVE_PORT", "")
    number = int(port) if port.isdecimal() else 8000  # a link of Kubernetes or Docker: tcp://...
    if os.environ.get("CONVSERVE_SSL_CERTFILE"):
        import ssl

        # Its own certificate need not name this address.
        unchecked = ssl._create_unverified_context()  # noqa: S323
        return http.client.HTTPSConnection(
            "127.0.0.1", number, timeout=TIMEOUT_S, context=unchecked
        )
    return http.client.HTTPConnection("127.0.0.1", number, timeout=TIMEOUT_S)


def main() -> int:
    """Returns 0 if the service is ready, else 1."""
    try:
        asked = connection()
        asked.request("GET", "/readyz")
        return int(asked.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"not ready: {error}\n")  # Docker keeps it
        return 1


if __name__ == "__main__":
    sys.exit(main())
