"""Certificates of the gate: made for its names, and renewed in time for the same ones."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from pipeline.embedded import certificates, renew_gate
from pipeline.embedded.certificates import make_certificate, renew_certificate
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.gate import Certificate
from pipeline.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    """With an open gate's files, whose certificate has just been made."""
    folder = StateFolder.of(tmp_path / "state")
    folder.create()
    folder.gate_file.write_text("{}")
    make_certificate(folder, "servers.example", "10.0.0.1", None)
    return folder


def read(folder: StateFolder) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder.tls / "gate.pem").read_bytes())


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_certificate_with_more_than_a_month_left_stays(folder: StateFolder) -> None:
    before = read(folder)
    assert renew_certificate(folder, now=before.not_valid_after_utc - dt.timedelta(days=31)) is None
    assert read(folder) == before


def test_certificate_is_renewed_for_the_same_names_by_the_same_authority(folder: StateFolder) -> None:
    before, authority = read(folder), (folder.tls / "ca.pem").read_bytes()
    ends = renew_certificate(folder, now=before.not_valid_after_utc - dt.timedelta(days=29))
    after = read(folder)
    assert ends == after.not_valid_after_utc
    assert after.serial_number != before.serial_number
    assert (after.subject, names(after)) == (before.subject, names(before))
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert (folder.tls / "ca.pem").read_bytes() == authority
    assert (folder.tls / "gate.key").stat().st_mode & 0o777 == 0o600


def test_open_gate_of_a_state_folder_is_renewed(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert renew_gate(folder.path) is None
    monkeypatch.setattr(certificates, "RENEW_BEFORE", dt.timedelta(days=400))
    assert renew_gate(folder.path) is not None
    folder.gate_file.unlink()  # closed
    assert renew_gate(folder.path) is None


def test_damaged_certificate_is_told(folder: StateFolder) -> None:
    (folder.tls / "gate.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"gate\.pem is damaged"):
        renew_certificate(folder)


def test_gate_takes_a_renewed_certificate_and_no_half_of_one(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = folder.tls / "gate.pem", folder.tls / "gate.key"
    served = Certificate(*map(str, files))
    first = served.context()
    assert served.context() is first
    key = files[1].read_bytes()
    make_certificate(folder, "servers.example", "10.0.0.1", None)
    new_key = files[1].read_bytes()
    files[1].write_bytes(key)  # as if the key were still to be written
    assert served.context() is first
    assert "the certificate of before stays" in capsys.readouterr().err
    files[1].write_bytes(new_key)
    assert isinstance(served.context(), ssl.SSLContext)
    assert served.context() is not first
