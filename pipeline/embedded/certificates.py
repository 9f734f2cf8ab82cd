"""Certificates of the gate: an authority of the state folder's own, and a server's certificate that it signs.

tls/ca.pem tls/ca.key  made once; who joins is given the certificate, and believes nobody else
tls/gate.pem tls/gate.key  made anew whenever the gate is opened, and while it is open, a month before their end
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipeline.embedded.folder import StateFolder, write_private
from pipeline.errors import ConfigurationError

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
RENEW_BEFORE = dt.timedelta(days=30)
_SKEW = dt.timedelta(days=1)
"""Of the clocks of hosts that join."""


def make_certificate(folder: StateFolder, host: str, address: str, owner: tuple[int, int] | None) -> Path:
    """A new certificate of the gate for these names, beside its key, which only its owner may read.

    host: as others will name it. owner: (uid, gid) of the gate, this process's when None. Returns the authority's
    certificate. Raises ConfigurationError where the authority's files are damaged.
    """
    folder.tls.mkdir(mode=0o700, exist_ok=True)
    _issue(folder.tls, _name(host), x509.SubjectAlternativeName(_names(host, address)), owner)
    return folder.tls / "ca.pem"


def renew_certificate(folder: StateFolder, *, now: dt.datetime | None = None) -> dt.datetime | None:
    """Make the gate's certificate anew where it ends within RENEW_BEFORE: for the same names, by the same authority.

    Hosts that have joined believe the new one as they did the old one. Returns when the new one ends; None where there
    was nothing to do. Call with the folder's lock held. Raises ConfigurationError where a file is damaged.
    """
    place = folder.tls
    try:
        old = x509.load_pem_x509_certificate((place / "gate.pem").read_bytes())
        owner = (place / "gate.pem").stat()
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(f"{place / 'gate.pem'} is damaged; open the servers anew: up, up --listen") from error
    if old.not_valid_after_utc > (now or dt.datetime.now(dt.UTC)) + RENEW_BEFORE:
        return None
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    new = _issue(place, old.subject, names, (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None)
    return new.not_valid_after_utc


def _issue(
    place: Path, subject: x509.Name, names: x509.SubjectAlternativeName, owner: tuple[int, int] | None
) -> x509.Certificate:
    """Make key and certificate and write both."""
    authority, authority_key = _authority(place)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), days=_SERVER_DAYS)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_private(place / "gate.pem", _pem(certificate), owner)
    write_private(place / "gate.key", _key_pem(key), owner)
    return certificate


def _authority(place: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The folder's own, made on first use."""
    try:
        certificate = x509.load_pem_x509_certificate((place / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((place / "ca.key").read_bytes(), password=None)
    except FileNotFoundError:
        return _new_authority(place)
    except ValueError as error:
        raise ConfigurationError(f"the authority in {place} is damaged; remove that folder, and join again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"the key in {place} is of another kind; remove that folder, and join again")
    return certificate, key


def _new_authority(place: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("specthink state folder")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), days=_AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(place / "ca.key", _key_pem(key))
    write_private(place / "ca.pem", _pem(certificate))
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _names(host: str, address: str) -> list[x509.GeneralName]:
    """The name that others use, the address behind it, and what this machine calls itself."""
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address))]
    dns = {name for name in (host, socket.gethostname()) if not _is_address(name) and name.isascii()}
    return names + [x509.DNSName(name) for name in sorted(dns)]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
