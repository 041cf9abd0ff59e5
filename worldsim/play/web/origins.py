"""Names of this machine, and whether a page is one of our own: what `Host` and `Origin` say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def names_loopback(host: str) -> bool:
    """Return whether a `Host` header names this machine, as nobody else's name can (DNS rebinding).

    The port is not looked at: a tunnel (`ssh -L 9000:localhost:8765`) begins at another one.
    """
    name, _ = _split(host)
    return is_loopback(name) or name.endswith(".localhost")


def is_own_origin(origin: str, headers: Mapping[str, str]) -> bool:
    """Return whether a page of this origin was served from here.

    A proxy in front may rewrite `Host`; it then says in `X-Forwarded-Host`, which no page of another site
    can send, what was asked for.
    """
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = DEFAULT_PORTS.get(parts.scheme)
    name, port = _split(parts.netloc)
    if default is None or not name:
        return False
    asked = (headers.get("Host", ""), headers.get("X-Forwarded-Host", "").partition(",")[0].strip())
    return (name, port or default) in [(name, port or default) for name, port in map(_split, asked)]


def _split(host: str) -> tuple[str, int]:
    """Return the name in small letters, without brackets and the dot of a full name, and the port or 0."""
    match = _HOST.fullmatch(host)
    if match is None:
        return "", 0
    return match["name"].lower().strip("[]").removesuffix("."), int(match["port"] or 0)
