"""TLS between the fleet and its trainers: which files, whether they hold together, and why a handshake fails."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar


class TlsError(ValueError):
    """Certificates or keys of ours cannot be used."""


@dataclass(frozen=True)
class Tls:
    """PEM files. One side's `ca` signed the other side's `cert`; usually one authority signs all (docs/security.md)."""

    ca: Path  # certificates of the authority by which the other side is known
    cert: Path | None = None  # ours, with what leads to the authority; a fleet has one, a trainer may need one
    key: Path | None = None  # of `cert`, readable by us alone
    name: str = ""  # that the fleet's certificates are made out to; empty: the host that is called
    require_client: bool = False  # of a fleet: who shows no certificate of the authority is sent away (mTLS)

    # What pydantic reads where this stands in a config: no other settings are taken.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls.cert: certificate and tls.key belong together; set both or neither")

    def absolute(self) -> "Tls":
        """The same files for a process that runs in another folder."""
        files: dict[str, Any] = {
            field.name: path.absolute() for field in fields(self) if isinstance(path := getattr(self, field.name), Path)
        }
        return replace(self, **files)

    def server_options(self) -> dict[str, object]:
        """What FlightServerBase is given. TlsError if the files cannot be used, or a caller would refuse them."""
        if self.cert is None or self.key is None:
            raise TlsError("fleet.tls.cert: who listens needs a certificate and its key; set fleet.tls.cert and .key")
        rehearse(self)
        options: dict[str, object] = {"tls_certificates": [(_read("cert", self.cert), _read("key", self.key))]}
        if self.require_client:
            options |= {"verify_client": True, "root_certificates": _read("ca", self.ca)}
        return options

    def client_options(self) -> dict[str, object]:
        """What FlightClient is given. TlsError if the files cannot be used."""
        _context(self, server=False)
        options: dict[str, object] = {"tls_root_certs": _read("ca", self.ca)}
        if self.cert is not None and self.key is not None:
            options |= {"cert_chain": _read("cert", self.cert), "private_key": _read("key", self.key)}
        if self.name:
            options["override_hostname"] = self.name
        return options


def rehearse(tls: Tls) -> None:
    """Shake hands with ourselves, in memory: TlsError says now what every caller would meet later."""
    client = _context(tls, server=False)
    client.check_hostname = bool(tls.name)
    said = _shake(client, _context(tls, server=True), tls.name)
    if said:
        raise TlsError(f"tls.cert: {tls.cert}: a caller who knows {tls.ca} refuses it: {said}")


def _shake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    """What is wrong between the two, or nothing."""
    client_in, server_in = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(client_in, server_in, server_hostname=name or None),
        server.wrap_bio(server_in, client_in, server_side=True),
    ]
    try:
        while ends:
            ends = [end for end in ends if not _shaken(end)]
    except ssl.SSLError as error:
        return next(_words(error), str(error)).replace("{name}", name).replace("its certificate", "it")
    return ""


def why(address: str, tls: Tls | None, timeout_s: float) -> str:
    """What of TLS keeps us from talking to `address` (host:port); empty if it is something else, or nobody answers.

    gRPC tells a client whose certificate is refused, or who speaks no TLS, only that the connection was closed.
    """
    said = _tried(address, tls, timeout_s)
    # Closed without a word may also be a server that ends just now: only if it happens again.
    return said if said != _CLOSED else _tried(address, tls, timeout_s).replace(_CLOSED, _doubt(tls))


# Where gRPC refuses a client's certificate, it says nothing.
_CLOSED = "it closes the connection after the handshake"


def _doubt(tls: Tls | None) -> str:
    """What is likely to be wrong with our certificate, by our own authority."""
    if tls is None or tls.cert is None:
        return "it asks for a certificate of ours: set tls.cert and tls.key"
    client, server = _context(tls, server=False), _context(tls, server=True)
    client.check_hostname, client.verify_mode, server.verify_mode = False, ssl.CERT_NONE, ssl.CERT_REQUIRED
    said = _shake(client, server, "")
    return f"it does not take our certificate, tls.cert: {said or 'its tls.ca must be the authority that signed it'}"


def _tried(address: str, tls: Tls | None, timeout_s: float) -> str:
    host, _, port = address.rpartition(":")
    context = _anyone() if tls is None else _context(tls, server=False)
    name = (tls and tls.name) or host.strip("[]")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as wire:
            wire.settimeout(timeout_s)
            with context.wrap_socket(wire, server_hostname=name) as secure:
                if tls is None:
                    return "it speaks TLS, and we do not: set pull.tls as the fleet's fleet.tls is"
                # Only now a server of TLS 1.3 looks at our certificate. One of gRPC has something to say at once.
                return "" if secure.recv(1) else _CLOSED
    except ssl.SSLError as error:
        # Without TLS of our own, that there is none on the other side is no hindrance.
        said = "" if tls is None and error.reason == "WRONG_VERSION_NUMBER" else next(_words(error), "")
        return said.replace("{name}", name)
    except (OSError, ValueError):
        return ""


_SIGNED = "its certificate is not signed by the authority in tls.ca"
_NAMED = "its certificate is not made out to {name}; set tls.name to a name it has, or make one with this name"
# By OpenSSL's number of a failed check (x509_vfy.h).
_CHECKS = {
    9: "its certificate is not valid yet; compare the clocks",
    10: "its certificate has expired; make a new one",
    **dict.fromkeys((18, 19, 20, 21), _SIGNED),
    26: "its certificate is made for another purpose; make one without restrictions",
    **dict.fromkeys((62, 64), _NAMED),
}
# By parts of OpenSSL's names of the other side's complaints; other failures may be the network's.
_COMPLAINTS = {
    "WRONG_VERSION_NUMBER": "it speaks no TLS, and we do: set fleet.tls, or leave out pull.tls",
    "CERTIFICATE_REQUIRED": "it asks for a certificate of ours: set tls.cert and tls.key",
    "ALERT_UNKNOWN_CA": "it does not take our certificate, tls.cert: its tls.ca must be the authority that signed it",
    "ALERT_CERTIFICATE_EXPIRED": "it does not take our certificate, tls.cert: it has expired; make a new one",
    "ALERT_BAD_CERTIFICATE": "it does not take our certificate, tls.cert",
}


def _words(error: ssl.SSLError) -> Iterator[str]:
    """What a failed handshake means, if it is sure to fail again."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _CHECKS:
            yield _CHECKS[error.verify_code]
    else:
        yield from (said for part, said in _COMPLAINTS.items() if part in (error.reason or ""))


def _shaken(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _context(tls: Tls, *, server: bool) -> ssl.SSLContext:
    """TlsError names the file that does not load."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=_read("ca", tls.ca).decode("ascii", errors="replace"))
    except ssl.SSLError:
        raise TlsError(f"tls.ca: {tls.ca} holds no certificate in PEM") from None
    if server and tls.require_client:
        context.verify_mode = ssl.CERT_OPTIONAL
    if tls.cert is not None and tls.key is not None:
        _read("cert", tls.cert), _read("key", tls.key)
        if tls.key.stat().st_mode & 0o007:
            raise TlsError(f"tls.key: everybody can read {tls.key}; chmod 600 it")
        try:
            context.load_cert_chain(tls.cert, tls.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"tls.cert: {tls.cert} is no certificate with its key {tls.key}: {error}") from None
    return context


def _anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _no_password() -> str:
    raise ValueError("the key asks for a password; keep it without one, readable by its user alone")


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"tls.{setting}: {path}: {error.strerror}") from None
