"""Certificates for tests: an authority, and what it signed, as files."""

import datetime
from pathlib import Path
from typing import Any

import trustme

from producer.api.tls import Tls

NAME = "fleet.inkstone"


class Authority:
    """Signs certificates and writes them to `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, 0
        self._authority = trustme.CA()
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def tls(self, *names: str, expired: bool = False, **settings: Any) -> Tls:
        """With a certificate for `names`, or with none if there are none."""
        if not names:
            return Tls(self.ca, **settings)
        self._made += 1
        now = datetime.datetime.now(datetime.UTC)
        until = now + datetime.timedelta(days=-1 if expired else 1)
        leaf = self._authority.issue_cert(*names, not_before=now - datetime.timedelta(days=9), not_after=until)
        cert, key = (self._folder / f"{self._made}.{kind}.pem" for kind in ("cert", "key"))
        for pem in leaf.cert_chain_pems:
            pem.write_to_path(cert, append=True)
        leaf.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return Tls(self.ca, cert, key, **settings)
