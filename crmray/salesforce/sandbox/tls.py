"""Certificates and credentials of a sandbox org, made once and kept in its folder.

    ca.pem                      its own certificate authority; the authority's key is thrown away after signing
    server.pem, server.key      for localhost, 127.0.0.1 and ::1
    app.pem, app.key            certificate of the connected app, and the RSA key with which a client signs its JWT
    client_id, client_secret, username, password   one line each

Keys and secrets have mode 0600.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import secrets
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crmray.salesforce.sandbox.store import USERNAME

VALID_DAYS = 825
"""of the certificates; what common clients accept at most"""
RENEW_DAYS = 30
"""a server certificate with less left is made anew"""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client needs to log in to a sandbox org."""

    folder: Path
    """where the files lie"""
    client_id: str
    """consumer key of the connected app"""
    client_secret: str = dataclasses.field(repr=False)
    """its consumer secret"""
    username: str
    """the one user"""
    password: str = dataclasses.field(repr=False)
    """of that user"""

    @property
    def ca_file(self) -> Path:
        """Certificate authority for the client."""
        return self.folder / "ca.pem"

    @property
    def private_key_file(self) -> Path:
        """RSA key of the JWT bearer flow."""
        return self.folder / "app.key"

    @property
    def app_certificate(self) -> bytes:
        """The connected app's certificate, PEM."""
        return (self.folder / "app.pem").read_bytes()


def prepare(folder: Path) -> Credentials:
    """The credentials in a folder; what is missing, or expires soon, is made."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_fresh(folder / "server.pem"):
        _make_server(folder)
    if not _is_fresh(folder / "app.pem"):
        _make_app(folder)
    return Credentials(
        folder=folder,
        client_id=_kept(folder / "client_id", "3MVG9" + secrets.token_urlsafe(40)),
        client_secret=_kept(folder / "client_secret", secrets.token_hex(32).upper()),
        username=_kept(folder / "username", USERNAME),
        password=_kept(folder / "password", secrets.token_urlsafe(18)),
    )


def _kept(path: Path, value: str) -> str:
    """The value that a file holds; a missing file gets this one."""
    if not path.exists():
        _write(path, f"{value}\n".encode())
    return path.read_text(encoding="utf-8").strip()


def _is_fresh(path: Path) -> bool:
    if not path.exists():
        return False
    left = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc - datetime.now(timezone.utc)
    return left > timedelta(days=RENEW_DAYS)


def _make_server(folder: Path) -> None:
    """A new authority and the server's certificate signed by it."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        _builder("crmray sandbox CA", "crmray sandbox CA", ca_key, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    addresses = [ipaddress.ip_address(address) for address in ("127.0.0.1", "::1")]
    names = [x509.DNSName("localhost"), *(x509.IPAddress(address) for address in addresses)]
    certificate = (
        _builder("localhost", "crmray sandbox CA", key, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _write_key(folder / "server.key", key)
    _write(folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _make_app(folder: Path) -> None:
    """The connected app's key and certificate, signed by itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = _builder("crmray sandbox app", "crmray sandbox app", key, key).sign(key, hashes.SHA256())
    _write_key(folder / "app.key", key)
    _write(folder / "app.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(subject: str, issuer: str, key: PrivateKey, issuer_key: PrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks in containers differ
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: PrivateKey) -> None:
    plain = serialization.NoEncryption()
    _write(path, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def _write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that has its mode from the first moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
