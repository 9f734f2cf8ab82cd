"""An authority of one's own that signs certificates, by openssl."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Files of a server's certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA whose certificate no system knows."""

    def __init__(self, folder: Path) -> None:
        """folder: new."""
        folder.mkdir(mode=0o755)
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", *_KEY, "-keyout", str(self._key), "-out", str(self.certificate), "-days", "2",
            "-subj", "/CN=an authority of tests", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, host: str, *, owner: tuple[int, int] | None) -> Certificate:
        """For a server of this name. owner: of the key, which nobody else may read; None: this user."""
        made = Certificate(certificate=self._folder / f"{host}.pem", key=self._folder / f"{host}.key")
        _openssl(
            "req", "-x509", *_KEY, "-keyout", str(made.key), "-out", str(made.certificate), "-days", "2",
            "-CA", str(self.certificate), "-CAkey", str(self._key), "-subj", f"/CN={host}",
            "-addext", f"subjectAltName=DNS:{host}", "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        made.key.chmod(0o600)
        if owner is not None:
            os.chown(made.key, *owner)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
