"""About 500 odd and hostile requests, as the bytes a client sends."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass

from tests.pictures import png

NEXT_ID = "the-next-request"
NEXT = f"GET /livez HTTP/1.1\r\nHost: t\r\nX-Request-Id: {NEXT_ID}\r\nConnection: close\r\n\r\n".encode()
"""Sent after each request. An answer to it shows that the server is in sync. It also closes."""

RED = png((255, 0, 0))
BLUE = png((0, 0, 255))
RED64 = base64.b64encode(RED).decode()
BLUE64 = base64.b64encode(BLUE).decode()
CLASSIFY = "/v1/classify"
CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
FORM = "Content-Type: multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Stream:
    """The bytes that a client sends on one connection.

    Attributes:
        pieces: each is sent on its own.
        waits: nothing follows, and the server has to time out.
        hangs_up: the client closes its sending side after the last byte.
    """

    pieces: tuple[bytes, ...]
    waits: bool = False
    hangs_up: bool = False


def head(line: str, *headers: str, host: str = "Host: t") -> bytes:
    """Returns a request head with a Host header."""
    lines = [line, *([host] if host else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    return head(f"{method} {target} HTTP/1.1", *headers)


def post(body: bytes = RED, *headers: str, target: str = CLASSIFY, method: str = "POST") -> bytes:
    """Returns a POST with the right Content-Length."""
    return head(f"{method} {target} HTTP/1.1", *headers, f"Content-Length: {len(body)}") + body


def framed(body: bytes, *headers: str) -> bytes:
    """Returns a POST with a Host and these headers only, right or wrong."""
    return head(f"POST {CLASSIFY} HTTP/1.1", *headers) + body


def chunks(body: bytes = RED, size: int = 1 << 20, extension: bytes = b"") -> bytes:
    """Returns a body in chunks of one size."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    sent = (b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return b"".join(sent) + b"0\r\n\r\n"


def query(text: str) -> bytes:
    """Posts a valid picture with a query string."""
    return post(target=f"{CLASSIFY}?{text}")


def timeout(value: str) -> bytes:
    """Posts a valid picture with a timeout header."""
    return post(RED, f"X-Request-Timeout-Ms: {value}")


def declared(media_type: str, body: bytes = RED) -> bytes:
    """Posts a body with this Content-Type."""
    return post(body, f"Content-Type: {media_type}")


def document(body: bytes | str | object) -> bytes:
    """Posts JSON: bytes and text as they are, anything else encoded."""
    if not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    return post(body, JSON)


def part(content: bytes = RED, disposition: str = 'form-data; name="image"; filename="a"') -> bytes:
    """Returns a form part that starts with its boundary, x."""
    return f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--x--\r\n", header: str = FORM) -> bytes:
    return post(b"".join(parts) + end, header)


def field(name: str, value: str) -> bytes:
    """Returns a form part without a file name."""
    return part(value.encode(), f'form-data; name="{name}"')


_BASE = {
    "livez": get("/livez"),
    "readyz": get("/readyz"),
    "models": get("/v1/models"),
    "model": get("/v1/models/tiny"),
    "version": get("/v1/models/tiny/versions/1"),
    "labels": get("/v1/models/tiny/labels"),
    "version-labels": get("/v1/models/tiny/versions/1/labels"),
    "tuning": get("/v1/models/tiny/tuning"),
    "metrics": get("/metrics"),
    "openapi": get("/openapi.json"),
    "docs": get("/docs"),
    "root": get("/"),
    "favicon": get("/favicon.ico"),
    "classify": post(),
    "classify-model": post(target="/v1/models/tiny/classify"),
    "classify-version": post(target="/v1/models/tiny/versions/1/classify"),
}

_FRAMING = {
    "length-and-chunked": framed(b"0\r\n\r\n", "Content-Length: 5", CHUNKED),
    "chunked-and-length": framed(b"0\r\n\r\n", CHUNKED, "Content-Length: 5"),
    "length-short-smuggles": framed(RED, f"Content-Length: {len(RED) - 9}"),
    "two-lengths": framed(b"xxxxxx", "Content-Length: 5", "Content-Length: 6"),
    "two-equal-lengths": framed(RED, *[f"Content-Length: {len(RED)}"] * 2),
    "list-of-lengths": framed(b"xxxxx", "Content-Length: 5, 5"),
    "length-negative": framed(b"x", "Content-Length: -1"),
    "length-plus": framed(b"x", "Content-Length: +1"),
    "length-hex": framed(b"x", "Content-Length: 0x1"),
    "length-float": framed(b"x", "Content-Length: 1.0"),
    "length-underscore": framed(b"x" * 10, "Content-Length: 1_0"),
    "length-leading-zeros": framed(RED, f"Content-Length: 000{len(RED)}"),
    "length-spaces": framed(RED, f"Content-Length:   {len(RED)}  "),
    "length-empty": framed(b"", "Content-Length:"),
    "length-word": framed(b"x", "Content-Length: one"),
    "length-10GB": framed(b"x", "Content-Length: 10000000000"),
    "length-2^64": framed(b"x", "Content-Length: 18446744073709551616"),
    "length-40-nines": framed(b"x", f"Content-Length: {'9' * 40}"),
    "length-limit-and-one": framed(b"x", "Content-Length: 20971521"),
    "length-superscript": framed(b"x", "Content-Length: \xb2"),
    "length-missing": framed(b""),
    "length-zero": framed(b"", "Content-Length: 0"),
    "length-on-get": get("/livez", "Content-Length: 5") + b"xxxxx",
    "chunked": framed(chunks(), CHUNKED),
    "chunked-upper-case": framed(chunks(), "Transfer-Encoding: CHUNKED"),
    "chunked-tiny": framed(chunks(size=1), CHUNKED),
    "chunked-extension": framed(chunks(extension=b";a=b"), CHUNKED),
    "chunked-extension-quoted": framed(chunks(extension=b';a="b;\\"c"'), CHUNKED),
    "chunked-extension-32kB": framed(chunks(extension=b";" + b"a" * 32_768), CHUNKED),
    "chunked-trailer": framed(chunks()[:-2] + b"X-T: 1\r\n\r\n", CHUNKED),
    "chunked-trailer-length": framed(chunks()[:-2] + b"Content-Length: 5\r\n\r\n", CHUNKED),
    "chunked-trailer-54kB": framed(chunks()[:-2] + b"A: b\r\n" * 9000 + b"\r\n", CHUNKED),
    "chunked-trailer-120kB": framed(chunks()[:-2] + b"A: b\r\n" * 20_000 + b"\r\n", CHUNKED),
    "chunked-trailer-no-colon": framed(b"0\r\nno colon\r\n\r\n", CHUNKED),
    "chunked-empty": framed(b"0\r\n\r\n", CHUNKED),
    "chunked-zeros-in-size": framed(b"0" * 20 + chunks(), CHUNKED),
    "chunked-size-word": framed(b"zz\r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-size-negative": framed(b"-1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-size-0x": framed(b"0x1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-size-2^80": framed(b"f" * 20 + b"\r\nx", CHUNKED),
    "chunked-size-missing": framed(b"\r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-size-space-before": framed(b" 1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-size-space-behind": framed(b"1 \r\nx\r\n0\r\n\r\n", CHUNKED),
    "chunked-end-missing": framed(b"1\r\nxx\r\n0\r\n\r\n", CHUNKED),
    "chunked-bare-line-feeds": framed(b"1\nx\n0\n\n", CHUNKED),
    "chunked-last-not-empty": framed(b"1\r\nx\r\n0\r\nxx", CHUNKED),
    "chunked-20MiB": framed(chunks(bytes(20 << 20)), CHUNKED),
    "chunked-20MiB-and-one": framed(chunks(bytes((20 << 20) + 1)), CHUNKED),
    "chunked-then-identity": framed(b"0\r\n\r\n", f"{CHUNKED}, identity"),
    "chunked-twice": framed(b"0\r\n\r\n", CHUNKED, CHUNKED),
    "chunked-list-twice": framed(b"0\r\n\r\n", f"{CHUNKED}, chunked"),
    "chunked-on-get": get("/livez", CHUNKED) + b"0\r\n\r\n",
    "chunked-in-1.0": head(f"POST {CLASSIFY} HTTP/1.0", CHUNKED) + chunks(),
    "coding-gzip-chunked": framed(b"0\r\n\r\n", "Transfer-Encoding: gzip, chunked"),
    "coding-identity": framed(b"0\r\n\r\n", "Transfer-Encoding: identity"),
    "coding-xchunked": framed(b"0\r\n\r\n", "Transfer-Encoding: xchunked"),
    "coding-tab-chunked": framed(b"0\r\n\r\n", "Transfer-Encoding:\tchunked"),
    "coding-vertical-tab": framed(b"0\r\n\r\n", "Transfer-Encoding: \x0bchunked"),
    "coding-space-in-name": framed(b"0\r\n\r\n", "Transfer-Encoding : chunked"),
    "coding-folded": framed(b"0\r\n\r\n", "Transfer-Encoding:", " chunked"),
    "coding-underscore": framed(b"0\r\n\r\n", "Transfer_Encoding: chunked"),
}

_HEADS = {
    "host-missing": head("GET /livez HTTP/1.1", host=""),
    "host-missing-1.0": head("GET /livez HTTP/1.0", host=""),
    "host-twice": get("/livez", "Host: u"),
    "host-empty": head("GET /livez HTTP/1.1", host="Host:"),
    "host-userinfo": head("GET /livez HTTP/1.1", host="Host: a@b/.."),
    "host-newline-encoded": head("GET /livez HTTP/1.1", host="Host: a%0d%0ab"),
    "version-0.9": b"GET /livez\r\n\r\n",
    "version-1.0": head("GET /livez HTTP/1.0"),
    "version-1.0-keep-alive": head("GET /livez HTTP/1.0", "Connection: keep-alive"),
    "version-1.2": head("GET /livez HTTP/1.2"),
    "version-2.0": head("GET /livez HTTP/2.0"),
    "version-preface-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version-9.9": head("GET /livez HTTP/9.9"),
    "version-11": head("GET /livez HTTP/11"),
    "version-lower-case": head("GET /livez http/1.1"),
    "version-of-icap": head("GET /livez ICAP/1.0"),
    "version-of-rtsp": head("DESCRIBE /livez RTSP/1.0"),
    "version-behind-two-spaces": head("GET /livez  HTTP/1.1"),
    "version-behind-tab": head("GET /livez\tHTTP/1.1"),
    "method-lower-case": get("/livez", method="get"),
    "method-unknown": get("/livez", method="HACK"),
    "method-empty": b" /livez HTTP/1.1\r\nHost: t\r\n\r\n",
    "method-8kB": get("/livez", method="A" * 8192),
    "method-propfind": get("/livez", method="PROPFIND"),
    "method-purge": get("/livez", method="PURGE"),
    "method-query": get("/livez", method="QUERY"),
    "method-connect": get("t:443", method="CONNECT"),
    "method-trace": get("/livez", method="TRACE"),
    "method-delete-model": get("/v1/models/tiny", method="DELETE"),
    "method-put-classify": post(method="PUT"),
    "method-patch-classify": post(method="PATCH"),
    "method-get-classify": get(CLASSIFY),
    "method-post-livez": post(b"x", target="/livez"),
    "method-head-livez": get("/livez", method="HEAD"),
    "method-head-models": get("/v1/models", method="HEAD"),
    "method-head-classify": get(CLASSIFY, method="HEAD"),
    "method-head-nothing": get("/nothing", method="HEAD"),
    "method-options-classify": get(CLASSIFY, method="OPTIONS"),
    "method-options-star": get("*", method="OPTIONS"),
    "cross-origin-preflight": get(
        CLASSIFY, "Origin: http://a", "Access-Control-Request-Method: POST", method="OPTIONS"
    ),
    "headers-100": get("/livez", *[f"A{i}: b" for i in range(99)]),
    "headers-101": get("/livez", *[f"A{i}: b" for i in range(100)]),
    "headers-2000": get("/livez", *[f"A{i}: b" for i in range(2000)]),
    "header-value-16kB": get("/livez", "A: " + "b" * 16_384),
    "header-value-64kB": get("/livez", "A: " + "b" * 65_536),
    "header-name-64kB": get("/livez", "A" * 65_536 + ": b"),
    "header-no-colon": get("/livez", "what"),
    "header-name-empty": get("/livez", ": b"),
    "header-name-space": get("/livez", "A B: c"),
    "header-name-not-ascii": get("/livez", "\xc4: c"),
    "header-value-not-ascii": get("/livez", "A: \xc4\xff"),
    "header-value-nul": get("/livez", "A: b\0c"),
    "header-value-escape": get("/livez", "A: b\x1b[31m"),
    "header-value-delete": get("/livez", "A: b\x7f"),
    "header-bare-cr": get("/livez", "A: b\rC: d"),
    "header-folded": get("/livez", "A: b", " c"),
    "header-folded-first": b"GET /livez HTTP/1.1\r\n Host: t\r\n\r\n",
    "lines-end-bare": b"GET /livez HTTP/1.1\nHost: t\n\n",
    "lines-end-cr-only": b"GET /livez HTTP/1.1\rHost: t\r\r",
    "empty-lines-in-front": b"\r\n\r\n\r\n" + get("/livez"),
    "request-id-odd": get("/livez", "X-Request-Id: a\tb<script>"),
    "request-id-65-long": get("/livez", "X-Request-Id: " + "a" * 65),
    "upgrade-websocket": get(
        "/livez", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA"
    ),
    "upgrade-h2c": get("/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    "upgrade-with-body": post(RED, "Connection: Upgrade", "Upgrade: h2c"),
    "connection-close": get("/livez", "Connection: close"),
    "connection-odd": get("/livez", "Connection: keep-alive, close, what"),
    "expect-continue": post(RED, "Expect: 100-continue"),
    "expect-continue-too-large": framed(b"", "Content-Length: 30000000", "Expect: 100-continue"),
    "expect-unknown": post(RED, "Expect: 200-ok"),
    "expect-in-1.0": head(
        f"POST {CLASSIFY} HTTP/1.0", "Expect: 100-continue", f"Content-Length: {len(RED)}"
    )
    + RED,
    "accept-xml": post(RED, "Accept: text/xml"),
    "range": get("/v1/models", "Range: bytes=0-9"),
    "if-none-match": get("/v1/models", "If-None-Match: *"),
    "forwarded-odd": get("/livez", "X-Forwarded-For: ' OR 1=1", "X-Forwarded-Proto: gopher"),
    "cookie-huge": get("/livez", "Cookie: " + "a=b; " * 2000),
    "method-override": post(RED, "X-HTTP-Method-Override: DELETE"),
    "tls-hello": b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03" + bytes(40),
    "ssh-hello": b"SSH-2.0-OpenSSH_9.0\r\n",
    "text": b"hello there\r\n\r\n",
    "zeros": bytes(100),
    "proxy-protocol": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + get("/livez"),
}

_TARGETS = {
    "absolute": get("http://t/livez"),
    "absolute-other-host": get("http://evil/livez"),
    "absolute-https": get("https://t/livez"),
    "absolute-no-path": get("http://t"),
    "absolute-post": post(target=f"http://t{CLASSIFY}"),
    "empty": head("GET  HTTP/1.1"),
    "star": get("*"),
    "no-slash": get("livez"),
    "userinfo": get("@evil/livez"),
    "two-slashes": get("//livez"),
    "two-slashes-inside": get("/v1//models"),
    "slash-behind": get("/livez/"),
    "slash-behind-models": get("/v1/models/"),
    "slash-behind-classify": post(target=f"{CLASSIFY}/"),
    "dots": get("/v1/../livez"),
    "dots-encoded": get("/v1/%2e%2e/livez"),
    "dots-to-password": get("/../../../etc/passwd"),
    "slash-encoded": get("/v1%2fmodels"),
    "letter-encoded": get("/%6civez"),
    "classify-letter-encoded": post(target="/v1/%63lassify"),
    "classify-upper-case": post(target="/v1/Classify"),
    "nul-encoded": get("/livez%00"),
    "newline-encoded": get("/livez%0d%0aX:%20y"),
    "percent-alone": get("/livez%"),
    "percent-not-hex": get("/%zz"),
    "percent-not-utf8": get("/%ff%fe"),
    "percent-twice": get("/%256civez"),
    "not-ascii": get("/\xff"),
    "fragment": get("/livez#x"),
    "backslash": get("\\livez"),
    "semicolon": get("/livez;a=b"),
    "space": get("/live z"),
    "pipe-and-brackets": get("/livez|<>{}^`"),
    "8kB": get("/" + "a" * 8192),
    "40kB": get("/" + "a" * 40_000),
    "question-mark-only": get("/livez?"),
    "query-40kB": get("/livez?" + "a" * 40_000),
    "model-unknown": post(target="/v1/models/none/classify"),
    "model-unknown-described": get("/v1/models/none"),
    "model-empty": post(target="/v1/models//classify"),
    "model-upper-case": post(target="/v1/models/TINY/classify"),
    "model-dots": get("/v1/models/.."),
    "model-dots-encoded": get("/v1/models/%2e%2e%2f%2e%2e"),
    "model-letter-encoded": post(target="/v1/models/%74iny/classify"),
    "model-space-encoded": post(target="/v1/models/tiny%20/classify"),
    "model-4kB": post(target=f"/v1/models/{'a' * 4096}/classify"),
    "model-quotes": get("/v1/models/'%22%3Cscript%3E"),
    **{
        f"version-{name}": post(target=f"/v1/models/tiny/versions/{value}/classify")
        for name, value in {
            "2": "2",
            "0": "0",
            "negative": "-1",
            "plus": "+1",
            "leading-zero": "01",
            "float": "1.0",
            "exponent": "1e0",
            "word": "latest",
            "space": "%201",
            "underscore": "1_0",
            "10-digits": "1000000000",
            "5000-digits": "9" * 5000,
            "arabic-digit": "%D9%A1",
        }.items()
    },
    "version-described-2": get("/v1/models/tiny/versions/2"),
    "version-described-word": get("/v1/models/tiny/versions/x"),
    "version-labels-2": get("/v1/models/tiny/versions/2/labels"),
    "version-missing": get("/v1/models/tiny/versions"),
}

_OPTIONS = {
    **{
        f"top-k-{name}": query(f"top_k={value}")
        for name, value in {
            "1": "1",
            "3": "3",
            "4": "4",
            "1000": "1000",
            "9999": "9999",
            "10000": "10000",
            "2^63": "9223372036854775808",
            "5000-digits": "9" * 5000,
            "0": "0",
            "00002": "00002",
            "negative": "-1",
            "plus": "%2B2",
            "space": "%202",
            "float": "2.0",
            "half": "2.5",
            "exponent": "2e0",
            "underscore": "1_0",
            "hex": "0x2",
            "word": "all",
            "empty": "",
            "true": "true",
            "null": "null",
            "encoded": "%32",
            "twice": "1&top_k=2",
            "semicolon": "1;min_probability=1",
            "ampersand-behind": "2&",
        }.items()
    },
    **{
        f"min-probability-{name}": query(f"min_probability={value}")
        for name, value in {
            "0": "0",
            "0.5": "0.5",
            "1": "1",
            "just-over-1": "1.0000001",
            "minus-zero": "-0",
            "negative": "-0.1",
            "nan": "nan",
            "infinity": "inf",
            "no-leading-zero": ".5",
            "tiny": "1e-400",
            "huge": "1e400",
            "comma": "0,5",
            "percent": "50%25",
            "empty": "",
            "twice": "0.99&min_probability=0",
        }.items()
    },
    "both": query("top_k=2&min_probability=0.5"),
    "unknown": query("topk=2"),
    "unknown-and-known": query("top_k=2&debug=1"),
    "name-upper-case": query("TOP_K=2"),
    "name-encoded": query("top%5fk=2"),
    "name-in-brackets": query("top_k[]=2"),
    "no-name": query("=2"),
    "ampersands": query("&&&"),
    "not-utf8": query("%ff=%fe"),
    "unknown-on-get": get("/v1/models?x=y"),
    "1000-parameters": query("&".join(f"a{i}=b" for i in range(1000))),
    **{
        f"timeout-{name}": timeout(value)
        for name, value in {
            "60000": "60000",
            "float": "5000.5",
            "exponent": "1e4",
            "plus": "+5000",
            "spaces": "  5000  ",
            "underscore": "5_000",
            "1e300": "1e300",
            "0": "0",
            "minus-zero": "-0.0",
            "negative": "-1",
            "nan": "nan",
            "infinity": "inf",
            "minus-infinity": "-inf",
            "1e400": "1e400",
            "hex": "0x10",
            "word": "soon",
            "unit": "5s",
            "empty": "",
            "list": "5000, 6000",
            "not-ascii": "\xb2",
            "1000-digits": "9" * 1000,
        }.items()
    },
    "timeout-twice": post(RED, "X-Request-Timeout-Ms: 5000", "X-Request-Timeout-Ms: 0"),
    "timeout-on-get": get("/livez", "X-Request-Timeout-Ms: what"),
}

_TYPES = {
    **{
        name: declared(media_type)
        for name, media_type in {
            "empty": "",
            "jpeg-for-png": "image/jpeg",
            "image-unknown": "image/what",
            "image-nothing": "image/",
            "image-svg": "image/svg+xml",
            "upper-case": "IMAGE/PNG",
            "parameters": "image/png; a=b; c",
            "parameter-8kB": "image/png; a=" + "b" * 8192,
            "octet-stream": "application/octet-stream",
            "urlencoded": "application/x-www-form-urlencoded",
            "text": "text/plain",
            "html": "text/html",
            "star": "*/*",
            "no-slash": "image",
            "slash-only": "/",
            "semicolon-only": ";",
            "comma-list": "image/png, text/plain",
            "xml": "application/xml",
            "pickle": "application/x-pickle",
            "javascript": "application/javascript",
            "json-lines": "application/jsonl",
            "json-problem": "application/problem+json",
            "json-for-png": "application/json",
            "multipart-mixed": "multipart/mixed; boundary=x",
            "video": "video/mp4",
            "not-ascii": "image/\xff",
            "quoted": '"image/png"',
        }.items()
    },
    "twice": post(RED, "Content-Type: image/png", "Content-Type: text/plain"),
    "twice-other-order": post(RED, "Content-Type: text/plain", "Content-Type: image/png"),
    **{
        f"encoding-{name}": post(body, f"Content-Encoding: {encoding}")
        for name, encoding, body in (
            ("empty", "", RED),
            ("identity", "identity", RED),
            ("identity-upper-case", "IDENTITY", RED),
            ("identity-twice", "identity, identity", RED),
            ("gzip", "gzip", zlib.compress(RED, wbits=31)),
            ("gzip-false", "gzip", RED),
            ("gzip-bomb", "gzip", zlib.compress(bytes(50_000_000), wbits=31)),
            ("x-gzip", "x-gzip", zlib.compress(RED, wbits=31)),
            ("deflate", "deflate", zlib.compress(RED)),
            ("brotli", "br", b"\x8b\2\x80picture\3"),
            ("zstd", "zstd", b"\x28\xb5\x2f\xfd"),
            ("unknown", "what", RED),
            ("identity-gzip", "identity, gzip", RED),
        )
    },
    "encoding-twice": post(RED, "Content-Encoding: identity", "Content-Encoding: gzip"),
}

_JSON = {
    "image": document({"image": RED64}),
    "image-data-url": document({"image": f"data:image/png;base64,{RED64}"}),
    "image-data-url-no-comma": document({"image": "data:image/png;base64"}),
    "image-data-url-not-base64": document({"image": "data:image/png,abc"}),
    "image-url": document({"image": "http://127.0.0.1/a.png"}),
    "image-file-url": document({"image": "file:///etc/passwd"}),
    "image-wrapped": document({"image": base64.encodebytes(RED).decode()}),
    "image-spaces": document({"image": " ".join(RED64)}),
    "image-no-padding": document({"image": RED64.rstrip("=")}),
    "image-more-padding": document({"image": RED64 + "===="}),
    "image-padding-inside": document({"image": "AA==" + RED64}),
    "image-url-safe": document({"image": base64.urlsafe_b64encode(b"\xff\xfe\xfd" * 9).decode()}),
    "image-not-ascii": document({"image": "\u00e4" * 8}),
    "image-lone-surrogate": document('{"image": "\\ud800"}'),
    "image-nul": document('{"image": "\\u0000"}'),
    "image-empty": document({"image": ""}),
    "image-null": document({"image": None}),
    "image-number": document({"image": 7}),
    "image-list": document({"image": [RED64]}),
    "image-object": document({"image": {"b64": RED64}}),
    "image-pixels": document({"image": [[[255, 0, 0]] * 3] * 3}),
    "image-twice": document(f'{{"image": "{RED64}", "image": "{BLUE64}"}}'),
    "images": document({"images": [RED64, BLUE64]}),
    "images-one": document({"images": [RED64]}),
    "images-none": document({"images": []}),
    "images-32": document({"images": [RED64] * 32}),
    "images-33": document({"images": [RED64] * 33}),
    "images-1000": document({"images": [""] * 1000}),
    "images-string": document({"images": RED64}),
    "images-object": document({"images": {"0": RED64}}),
    "images-mixed": document({"images": [RED64, 7, None, "!", "", [RED64]]}),
    "image-and-images": document({"image": RED64, "images": [RED64]}),
    "unknown-member": document({"image": RED64, "debug": True}),
    "nothing": document({}),
    "empty-body": post(b"", JSON),
    "space": document(" "),
    "null": document("null"),
    "number": document("1"),
    "string": document(f'"{RED64}"'),
    "list": document([RED64]),
    "true": document("true"),
    "options": document({"image": RED64, "top_k": 2, "min_probability": 0.5}),
    "options-over-query": post(
        json.dumps({"image": RED64, "top_k": 1}).encode(), JSON, target=f"{CLASSIFY}?top_k=2"
    ),
    "options-only": document({"top_k": 2}),
    **{
        f"top-k-{name}": document(f'{{"image": "{RED64}", "top_k": {value}}}')
        for name, value in {
            "null": "null",
            "string": '"2"',
            "float": "2.0",
            "half": "2.5",
            "true": "true",
            "zero": "0",
            "4": "4",
            "huge": "9" * 400,
            "list": "[2]",
            "exponent": "2e0",
        }.items()
    },
    **{
        f"min-probability-{name}": document(f'{{"image": "{RED64}", "min_probability": {value}}}')
        for name, value in {
            "null": "null",
            "string": '"0.5"',
            "nan": "NaN",
            "infinity": "Infinity",
            "huge": "1e999",
            "true": "true",
            "negative": "-1e-9",
        }.items()
    },
    "nan": document("NaN"),
    "depth-100": document("[" * 100 + "]" * 100),
    "depth-100000": document("[" * 100_000 + "]" * 100_000),
    "depth-of-objects": document('{"a":' * 5000 + "1" + "}" * 5000),
    "depth-in-image": document('{"image": ' + "[" * 5000 + "]" * 5000 + "}"),
    "not-closed": document('{"image": "'),
    "comma-behind": document(f'{{"image": "{RED64}",}}'),
    "comment": document(f'{{"image": "{RED64}" /* x */}}'),
    "single-quotes": document("{'image': ''}"),
    "two-documents": document(f'{{"image": "{RED64}"}}{{}}'),
    "tail": document(f'{{"image": "{RED64}"}} x'),
    "byte-order-mark": document(b"\xef\xbb\xbf{}"),
    "utf-16": document('{"image": ""}'.encode("utf-16")),
    "not-utf8": document(b'{"image": "\xff"}'),
    "control-character": document(b'{"image": "a\x01"}'),
    "escaped-name": document(f'{{"\\u0069mage": "{RED64}"}}'),
    "100000-members": document({f"a{i}": 1 for i in range(100_000)}),
    "number-of-100000-digits": document("9" * 100_000),
    "charset-utf-16": post(
        json.dumps({"image": RED64}).encode(), "Content-Type: application/json; charset=utf-16"
    ),
    "type-upper-case": post(
        json.dumps({"image": RED64}).encode(), "Content-Type: APPLICATION/JSON"
    ),
    "two-MB-of-base64": document({"image": "A" * 2_000_000}),
}

_MULTIPART = {
    "file": form(part()),
    "two-files": form(part(), part(BLUE)),
    "32-files": form(*[part()] * 32),
    "33-files": form(*[part()] * 33),
    "5000-parts": form(*[part(b"")] * 5000),
    "same-bytes-not-image": form(part(b"text")),
    "good-and-bad": form(part(), part(b"text"), part(RED[:60])),
    "no-parts": form(),
    "empty-body": post(b"", FORM),
    "empty-file": form(part(b"")),
    "other-name": form(part(disposition='form-data; name="whatever"; filename="a"')),
    "no-name": form(part(disposition='form-data; filename="a"')),
    "no-file-name": form(part(disposition='form-data; name="image"')),
    "name-dots": form(part(disposition='form-data; name="../../x"; filename="../../x"')),
    "name-nul": form(part(disposition='form-data; name="a\0b"; filename="c\0d"')),
    "name-not-utf8": post(
        part(disposition="form-data; name=\u00e4").replace("\u00e4".encode(), b"\xff")
        + b"--x--\r\n",
        FORM,
    ),
    "name-8kB": form(part(disposition=f'form-data; name="{"a" * 8192}"; filename="a"')),
    "file-name-encoded": form(part(disposition="form-data; name=a; filename*=utf-8''%e4%b8%ad")),
    "disposition-attachment": form(part(disposition="attachment; filename=a")),
    "disposition-missing": form(b"--x\r\n\r\n" + RED + b"\r\n"),
    "part-type-text": form(
        b'--x\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n'
        b"Content-Type: text/plain\r\n\r\n" + RED + b"\r\n"
    ),
    "part-type-json": form(
        b'--x\r\nContent-Disposition: form-data; name="i"\r\nContent-Type: application/json\r\n\r\n'
        b"{}\r\n"
    ),
    "part-base64-coded": form(
        b'--x\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n" + RED64.encode() + b"\r\n"
    ),
    "part-17-headers": form(b"--x\r\n" + b"A: b\r\n" * 17 + b"\r\nx\r\n"),
    "part-header-1MB": form(b"--x\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\nx\r\n"),
    "part-header-no-colon": form(b"--x\r\nwhat\r\n\r\nx\r\n"),
    "part-header-folded": form(
        b'--x\r\nContent-Disposition: form-data;\r\n name="a"; filename="b"\r\n\r\n' + RED + b"\r\n"
    ),
    "nested": form(
        b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n"
        + RED
        + b"\r\n--y--\r\n"
    ),
    "boundary-missing": form(part(), header="Content-Type: multipart/form-data"),
    "boundary-empty": form(part(), header="Content-Type: multipart/form-data; boundary="),
    "boundary-quoted": form(part(), header='Content-Type: multipart/form-data; boundary="x"'),
    "boundary-other": form(part(), header="Content-Type: multipart/form-data; boundary=y"),
    "boundary-twice": form(
        part(), header="Content-Type: multipart/form-data; boundary=x; boundary=y"
    ),
    "boundary-1000-long": form(
        part(), header=f"Content-Type: multipart/form-data; boundary={'y' * 1000}"
    ),
    "boundary-not-ascii": form(part(), header="Content-Type: multipart/form-data; boundary=\xff"),
    "end-missing": form(part(), end=b""),
    "end-without-dashes": form(part(), end=b"--x\r\n"),
    "end-twice": form(part(), end=b"--x--\r\n--x--\r\n"),
    "text-in-front": form(b"what\r\n", part()),
    "1MB-in-front": form(b"a" * 1_000_000 + b"\r\n", part()),
    "text-behind": form(part(), end=b"--x--\r\nwhat"),
    "file-behind-the-end": form(part(), end=b"--x--\r\n" + part(BLUE)),
    "boundary-in-file": form(part(RED + b"--x" + RED)),
    "boundary-line-in-file": form(part(RED + b"\r\n--x\r\n\r\n" + BLUE)),
    "bare-line-feeds": form(part().replace(b"\r\n", b"\n"), end=b"--x--\n"),
    "spaces-behind-boundary": form(part().replace(b"--x\r\n", b"--x  \r\n")),
    "not-multipart": form(RED, end=b""),
    "top-k": form(field("top_k", "2"), part()),
    "top-k-behind": form(part(), field("top_k", "1")),
    "top-k-0": form(field("top_k", "0"), part()),
    "top-k-word": form(field("top_k", "all"), part()),
    "top-k-twice": form(field("top_k", "1"), field("top_k", "2"), part()),
    "top-k-not-utf8": form(part(b"\xff", 'form-data; name="top_k"'), part()),
    "top-k-as-file": form(part(b"2", 'form-data; name="top_k"; filename="a"'), part()),
    "min-probability": form(field("min_probability", "0.5"), part()),
    "options-only": form(field("top_k", "2")),
    "unknown-field": form(field("debug", "1"), part()),
}

_PIPELINES = {
    "five": post() + get("/livez") + post(b"x") + get("/nothing") + post(BLUE),
    "100": get("/livez") * 100,
    "good-then-noise": post() + b"hello there\r\n\r\n",
    "good-then-conflict": post() + framed(b"0\r\n\r\n", "Content-Length: 5", CHUNKED),
    "close-in-the-middle": get("/livez") + get("/livez", "Connection: close") + get("/livez"),
    "head-then-get": get("/livez", method="HEAD") + get("/livez"),
    "refused-then-good": declared("text/plain") + post(),
    "not-found-with-body": post(target="/nothing") + get("/livez"),
    "not-allowed-with-body": post(method="PUT") + get("/livez"),
    "expect-then-get": post(RED, "Expect: 100-continue") + get("/livez"),
    "too-large-then-get": framed(b"", "Content-Length: 30000000") + get("/livez"),
    "lines-between": get("/livez") + b"\r\n\r\n" + get("/livez"),
    "get-in-body": post(get("/v1/models/tiny")),
    "1.0-then-1.1": head("GET /livez HTTP/1.0") + get("/livez"),
    "chunked-then-get": framed(chunks(size=16), CHUNKED) + get("/livez"),
}


def _bytewise(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + 1] for i in range(len(data)))


_STREAMS = {
    "pieces-of-a-byte": Stream(_bytewise(post())),
    "pieces-of-a-chunked-byte": Stream(_bytewise(framed(chunks(size=10), CHUNKED))),
    "head-then-body": Stream((post()[: -len(RED)], RED)),
    "waits-in-silence": Stream((), waits=True),
    "waits-in-request-line": Stream((b"GET /livez HT",), waits=True),
    "waits-in-head": Stream((b"GET /livez HTTP/1.1\r\nHost: t\r\n",), waits=True),
    "waits-in-second-head": Stream((get("/livez") + b"GET /li",), waits=True),
    "waits-in-body": Stream((post()[:-9],), waits=True),
    "waits-in-chunk": Stream((framed(b"ff\r\nhalf", CHUNKED),), waits=True),
    "waits-before-body": Stream((framed(b"", "Content-Length: 100"),), waits=True),
    "waits-in-refused-body": Stream(
        (framed(b"x", "Content-Length: 100", "Content-Type: text/plain"),), waits=True
    ),
    "waits-with-body-of-unknown-path": Stream((post(target="/nothing")[:-9],), waits=True),
    "hangs-up-in-silence": Stream((), hangs_up=True),
    "hangs-up-in-head": Stream((b"GET /livez HTTP/1.1\r\n",), hangs_up=True),
    "hangs-up-in-body": Stream((post()[:-9],), hangs_up=True),
    "hangs-up-in-chunk": Stream((framed(b"ff\r\nhalf", CHUNKED),), hangs_up=True),
}


def odd_requests() -> dict[str, Stream]:
    """Returns the streams by name. The names are keys of the table and must not change."""
    cases = {f"stream-{name}": stream for name, stream in _STREAMS.items()}
    for family, table in (
        ("plain", _BASE),
        ("framing", _FRAMING),
        ("head", _HEADS),
        ("target", _TARGETS),
        ("option", _OPTIONS),
        ("type", _TYPES),
        ("json", _JSON),
        ("multipart", _MULTIPART),
        ("pipeline", _PIPELINES),
    ):
        for name, sent in table.items():
            cases[f"{family}-{name}"] = Stream((sent,))
    return cases
