"""Fetching of pictures: from the hosts that were named, at public addresses, by https, within bounds; else nothing."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import SAMPLES, chat, running

from catp.runtime import Pipeline, UsageError
from catp.runtime.server.failures import Failure
from catp.runtime.server.reading import fetching
from catp.runtime.server.reading.fetching import check_domain, fetch, is_public

HOST = "pictures.example.com"
CONTENT = SAMPLES[0].image.read_bytes()


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.png",
        f"https://{HOST}:8443/a.png",
        f"https://{HOST}:x/a.png",
        f"https://user@{HOST}/a.png",
        f"https://user:secret@{HOST}/a.png",
        f"https://{HOST}@evil.example/a.png",
        f"https://evil.example#{HOST}",
        f"https://evil.example/?{HOST}",
        f"https://{HOST}.evil.example/",
        f"https://evil{HOST}/",
        f"https://{HOST}./",
        f"https://sub.{HOST}/",
        "https://evil.example\\@" + HOST,
        f"https://{HOST} /a.png",
        f"https://{HOST}\t/",
        f"https://{HOST}\n.evil.example/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[",
        "https:///a.png",
        "https:a.png",
        f"file://{HOST}/etc/passwd",
        f"ftp://{HOST}/",
        f"//{HOST}/a.png",
        f"https://{HOST.replace('e', 'е')}/",  # a Cyrillic letter
    ],
)
def test_no_other_url_is_looked_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **named: object) -> None:
        raise AssertionError("a look-up")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr(socket, "create_connection", fails)
    with pytest.raises(Failure) as caught:
        fetch(url, (HOST,), "image")
    assert caught.value.status == 400 and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("255.255.255.255", False),
        ("198.18.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("x", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_one_private_address_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a name that is resolved anew each time (rebinding) is resolved once."""
    asked = []

    def resolve(host: str, port: int, **named: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(Failure, match="no public host"):
        fetch(f"https://{HOST}/a.png", (HOST,), "image")
    assert asked == [HOST]


class Pictures(http.server.BaseHTTPRequestHandler):
    """A host of pictures, good and bad."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "https://127.0.0.1/secret")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        length = {"/huge": 11 << 20, "/short": 2 * len(CONTENT)}.get(self.path, len(CONTENT))
        self.send_header("content-length", str(length))
        self.end_headers()
        if self.path == "/huge":
            self.wfile.write(b"\0" * length)
        elif self.path == "/slow":
            for byte in CONTENT:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that leave."""

    def handle_error(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of HOST, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem"
    subprocess.run(
        [*command.split(), "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture
def host(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HOST at a public address, as far as the code can tell; connections to it end on this machine."""
    server = Server(("127.0.0.1", 0), Pictures)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    connect, look_up = socket.create_connection, socket.getaddrinfo
    port = server.server_address[1]

    def connected(address: tuple[str, int], *arguments: Any, **named: Any) -> socket.socket:
        if address == ("93.184.216.34", 443):
            address = ("127.0.0.1", port)
        return connect(address, *arguments, **named)

    def found(name: str, *arguments: Any, **named: Any) -> list[Any]:
        if name == HOST:
            return [(2, 1, 6, "", ("93.184.216.34", 443))]
        return look_up(name, *arguments, **named)

    monkeypatch.setattr(socket, "create_connection", connected)
    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(fetching, "_context", lambda: ssl.create_default_context(cafile=str(certificate)))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_is_fetched(host: None) -> None:
    assert fetch(f"https://{HOST}/a.png?x=1", (HOST,), "image") == CONTENT
    assert fetch(f"HTTPS://{HOST.upper()}:443/a.png", (HOST,), "image") == CONTENT


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/moved", 400, "answers 302, and no redirect is followed"),
        ("/none", 400, "answers 404"),
        ("/huge", 413, "more than 10,485,760 bytes"),
        ("/short", 400, "can't be fetched"),
        ("/slow", 400, "can't be fetched"),
    ],
)
def test_what_is_wrong_at_the_host(
    host: None, path: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 1.0 if path == "/slow" else 20.0)
    began = time.monotonic()
    with pytest.raises(Failure) as caught:
        fetch(f"https://{HOST}{path}", (HOST,), "image")
    assert caught.value.status == status and said in caught.value.message
    assert time.monotonic() - began < 15


def test_a_certificate_of_another_host_is_none(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_context", ssl.create_default_context)
    with pytest.raises(Failure, match="can't be fetched"):
        fetch(f"https://{HOST}/a.png", (HOST,), "image")


def test_a_server_answers_about_it_and_caches_it_by_its_content(host: None, pipeline: Pipeline) -> None:
    with running(pipeline, media_domains=(HOST,)) as server:
        body = chat()
        assert server.ask(**body).json()["catp"]["image_cached"] is False
        body["messages"][0]["content"][0]["image_url"]["url"] = f"https://{HOST}/a.png"
        found = server.ask(**body).json()
        assert found["choices"][0]["message"]["content"] == "a black diamond" and found["catp"]["image_cached"]
        body["messages"][0]["content"][0]["image_url"]["url"] = "https://other.example.com/a.png"
        refused = server.ask(**body)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "forbidden_url"


def test_domains_are_names() -> None:
    assert check_domain("Images.Example.com") == "images.example.com"
    for wrong in (
        "",
        "*",
        "*.example.com",
        "localhost",
        "127.0.0.1",
        "::1",
        "https://example.com",
        "a b.com",
        "x/y.com",
    ):
        with pytest.raises(UsageError, match="give the name of a host"):
            check_domain(wrong)
