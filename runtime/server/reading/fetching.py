"""Fetching of pictures from hosts that whoever runs the server has named, and from nowhere else.

A URL comes from a client, so the server must not be its way to what only the server can reach: https alone, exactly the
hosts named, no redirects; a name is resolved once, every address of it has to be a public one, and the connection goes
to that very address. Bytes and time are bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from catp.runtime.errors import UsageError
from catp.runtime.limits import FETCH_SECONDS, IMAGE_BYTES
from catp.runtime.server.failures import Failure

_HOST = re.compile(r"(?!-)[a-z0-9-]+(\.[a-z0-9-]+)+")
_PORT = 443
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_domain(domain: str) -> str:
    """A host as it is compared, in lower case.

    Raises:
        UsageError: it is no name of a host.
    """
    name = domain.lower()
    if not _HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise UsageError(f"--allow-media-domain {domain}: give the name of a host, such as images.example.com")
    return name


def fetch(url: str, domains: Collection[str], param: str) -> bytes:
    """The content of a URL.

    Args:
        domains: hosts, in lower case.

    Raises:
        Failure: it must not be fetched, or can't be.
    """
    parts = _split(url, domains, param)
    host = str(parts.hostname)
    address = _resolve(host, param)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return _get(host, address, target, param)
    except (OSError, http.client.HTTPException, ValueError):
        # Nothing is said of how it failed: it would tell a client about hosts that it can't see itself.
        raise Failure(400, f"image URL: it can't be fetched from {host}", "unreachable_url", param) from None


def _split(url: str, domains: Collection[str], param: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Failure(400, "image URL: it is none", "invalid_url", param) from None
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Failure(400, "image URL: it has characters that a URL can't have", "invalid_url", param)
    if parts.scheme != "https" or port not in (None, _PORT) or parts.username is not None or parts.password is not None:
        raise Failure(400, "image URL: only https://HOST/... is fetched, without port and user", "invalid_url", param)
    if parts.hostname not in domains:
        raise Failure(400, f"image URL: its host is none of {', '.join(domains)}", "forbidden_url", param)
    return parts


def _resolve(host: str, param: str) -> str:
    """One address of a host, all of which are public."""
    try:
        found = socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Failure(400, f"image URL: it can't be fetched from {host}", "unreachable_url", param) from None
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    if not addresses or not all(map(is_public, addresses)):
        raise Failure(400, f"image URL: {host} is no public host", "forbidden_url", param)
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is reachable from everywhere, also the IPv4 address that may be inside one of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = [parsed.ipv4_mapped, parsed.sixtofour, *(parsed.teredo or ())]
        if parsed in _NAT64:
            inner.append(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
        if any(part is not None and not is_public(str(part)) for part in inner):
            return False
        if parsed.ipv4_mapped is not None:
            return True
    return parsed.is_global and not parsed.is_multicast


def _get(host: str, address: str, target: str, param: str) -> bytes:
    raw = socket.create_connection((address, _PORT), FETCH_SECONDS)
    with raw, raw.dup() as held:
        # However slowly it drips, it ends in time: the connection is shut down under whoever reads it.
        timer = threading.Timer(FETCH_SECONDS, _shut_down, [held])
        timer.start()
        try:
            with _context().wrap_socket(raw, server_hostname=host) as secured:
                connection = http.client.HTTPSConnection(host)
                connection.sock = secured
                connection.request("GET", target, headers={"accept": "image/*", "user-agent": "catp-serve"})
                response = connection.getresponse()
                if response.status != http.client.OK:
                    message = f"image URL: {host} answers {response.status}, and no redirect is followed"
                    raise Failure(400, message, "unreachable_url", param)
                content = response.read(IMAGE_BYTES + 1)
                if len(content) > IMAGE_BYTES:
                    raise Failure(413, f"image: more than {IMAGE_BYTES:,} bytes", "image_too_large", param)
                if response.length:  # cut off
                    raise OSError
                return content
        finally:
            timer.cancel()


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
