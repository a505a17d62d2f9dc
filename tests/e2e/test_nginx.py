"""nginx with the file of deploy/proxy, TLS and a unix socket. Needs nginx on this machine."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urljoin

import pytest
import trustme
from httpx2 import Client, HTTPTransport

from tests import tinymodel
from tests.e2e.server import PATIENCE_S, ROOT, free_port
from tests.problems import assert_problem
from tests.waiting import wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TEXT = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text(encoding="utf-8")
RED = tinymodel.picture("red")
LARGE = RED + bytes(19_000_000)  # a PNG may have anything after its end
MAIN = """
{user}
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {site}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts nginx with the committed file; only port, certificate, socket and prefix differ.

    Returns a client of its own address, 127.0.0.2, which trusts the certificate.
    """
    with ExitStack() as stack:

        def start(socket: Path, prefix: str = "/", passed_on: bool = True) -> Client:
            authority, port = trustme.CA(), free_port()
            certificate = authority.issue_cert("localhost", "127.0.0.1")
            certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")

            site = replaced(TEXT, "listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
            site = replaced(site, "/run/convserve/http.sock", str(socket))
            site = re.sub(r"/etc/ssl/\S+(?=;)", str(tmp_path / "both.pem"), site)
            site = replaced(site, "    location / {", f"    location {prefix} {{")
            if not passed_on:
                site = replaced(
                    site, "    proxy_pass http://convserve;", "proxy_pass http://convserve/;"
                )
            # The user of a running nginx must reach the socket.
            user = "user root;" if os.geteuid() == 0 else ""
            (tmp_path / "nginx.conf").write_text(
                MAIN.format(site=site, user=user), encoding="utf-8"
            )

            command = [str(NGINX), "-p", str(tmp_path), "-c", "nginx.conf"]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603
            stack.callback(process.communicate)
            stack.callback(process.terminate)
            wait_until((tmp_path / "nginx.pid").exists, PATIENCE_S)

            context = ssl.create_default_context()
            authority.configure_trust(context)
            transport = HTTPTransport(verify=context, local_address="127.0.0.2")
            url = f"https://localhost:{port}"
            return stack.enter_context(
                Client(transport=transport, base_url=url, timeout=PATIENCE_S)
            )

        yield start


@pytest.fixture
def start_behind_nginx(start_server, tmp_path):
    """Starts a server as the systemd unit does, and returns it and its socket."""

    def start(**settings):
        socket = tmp_path / "http.sock"
        return start_server(uds=socket, forwarded_allow_ips="unix", **settings), socket

    return start


def test_nginx_names_the_client_and_drops_what_it_says_about_itself(
    start_behind_nginx, start_nginx
):
    server, socket = start_behind_nginx()
    client = start_nginx(socket)

    client.get("/v1/models", headers={"X-Forwarded-For": "203.0.113.7"})

    assert server.wait_for_log("request")["client"] == "127.0.0.2"


def test_nginx_passes_on_large_pictures_and_the_services_own_errors(
    start_behind_nginx, start_nginx
):
    _, socket = start_behind_nginx()
    client = start_nginx(socket)

    large = client.post("/v1/classify", content=LARGE)
    broken = client.post("/v1/classify", content=RED[:50])

    assert large.json()["predictions"][0]["label"] == "red"
    assert_problem(broken, 422, "image_truncated")
    assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize(
    ("passed_on", "settings"),
    [(False, {}), (False, {"root_path": "/vision"}), (True, {"root_path": "/vision"})],
    ids=["stripped", "stripped-with-setting", "passed-on"],
)
def test_nginx_serves_everything_below_a_prefix(
    start_behind_nginx, start_nginx, passed_on, settings
):
    _, socket = start_behind_nginx(**settings)
    client = start_nginx(socket, "/vision/", passed_on)

    page = client.get("/vision/", follow_redirects=True)
    links = re.findall(r"""(?:(?:src|href)=|url: )["']([^"']+)""", page.text)
    server = client.get("/vision/openapi.json").json()["servers"][0]["url"]
    classify = urljoin("/vision/openapi.json", server) + "v1/classify"

    assert page.url.path == "/vision/docs"
    assert [client.get(urljoin("/vision/docs", one)).status_code for one in links] == [200] * 4
    assert client.post(classify, content=RED).json()["predictions"][0]["label"] == "red"
    assert client.head("/vision/readyz").status_code == 200
