"""Which URLs may be asked at all: none that leads to this machine, its network or its cloud's metadata by accident.

Who names a URL is often not who runs the fleet: a list of shards comes from elsewhere, and any server may redirect.
Addresses are checked after resolving, and the checked one is connected to, so that a name cannot answer differently
the second time (DNS rebinding).
"""

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
# Networks that carry an IPv4 address in their last 32 bits, which a gateway may unpack (RFC 6052, RFC 4291).
_CARRIERS = [ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/96", "::/96", "::ffff:0:0:0/96")]

Resolve = Callable[..., list[Any]]


class RefusedError(ValueError):
    """A URL must not be asked; the message says which rule it breaks."""


class Target(NamedTuple):
    """Where a URL leads, checked."""

    scheme: str
    host: str
    port: int
    path: str  # with the query, as a request line needs it
    address: str  # to connect to


def scheme_of(url: str, schemes: tuple[str, ...]) -> str:
    """The scheme of `url` if it is one of `schemes` and the URL holds nothing that parsers disagree on."""
    if any(ord(char) <= 0x20 or ord(char) >= 0x7F for char in url) or "\\" in url:
        raise RefusedError("its URL holds spaces, control characters, backslashes or letters that are not ASCII")
    if len(url) > 4096:
        raise RefusedError(f"its URL has {len(url)} characters, the limit is 4096")
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or scheme not in schemes:
        raise RefusedError(f"scheme {scheme[:40]!r} is not among source.remote.schemes {', '.join(schemes)}")
    if "::" in rest.partition("/")[2] or "::" in scheme:
        raise RefusedError("chained URLs are not read")
    if "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
        raise RefusedError("its URL holds a user or a password; credentials belong in the environment")
    return scheme


def target(url: str, schemes: tuple[str, ...], hosts: tuple[str, ...], resolve: Resolve = socket.getaddrinfo) -> Target:
    """Where the http(s) `url` leads; RefusedError unless every address of its host is public or `hosts` names it.

    OSError if the name cannot be resolved.
    """
    scheme = scheme_of(url, schemes)
    if scheme not in _PORTS:
        raise RefusedError(f"scheme {scheme} is not asked over HTTP")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[scheme]
    except ValueError as error:
        raise RefusedError(f"its URL is malformed: {error}") from None
    if not host:
        raise RefusedError("its URL names no host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    named = {host, f"{host}:{port}"} & {name.lower() for name in hosts}
    if not named:
        _check_spelling(host)
    found = [str(entry[4][0]).partition("%")[0] for entry in resolve(host, port, type=socket.SOCK_STREAM)]
    if not found:
        raise OSError(f"{host}: has no address")
    for address in found if not named else ():
        if not is_public(address):
            raise RefusedError(f"host {host} leads to {address}, which is not public; source.remote.hosts may name it")
    return Target(scheme, host, port, path, found[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, whatever it is wrapped in."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        inner += [ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) for net in _CARRIERS if found in net]
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
        if found.ipv4_mapped is not None:
            return True
    odd = found.is_multicast or found.is_reserved or found.is_unspecified or found.is_link_local or found.is_private
    return found.is_global and not odd


def _check_spelling(host: str) -> None:
    """Numbers in other spellings than a.b.c.d reach an address too, by rules that differ between resolvers."""
    if ":" in host:
        return
    last = host.rstrip(".").rpartition(".")[2]
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise RefusedError(f"host {host} is a number in an odd spelling; write an address as a.b.c.d") from None
