"""The clinic's own certificate authority for its broker and its monitors (X.509, EC P-256).

One directory holds everything: ``ca.crt`` and ``ca.key``, and a ``NAME.crt`` and ``NAME.key`` for
each holder. Keys are readable by us alone. What is present and still good is used again, so that
a monitor keeps its certificate when the demo or the site starts again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fajma.errors import InputError
from fajma.files import write_private

BRIDGE_NAME: Final = "fajma-ingest"
"""Common name of the bridge's client certificate; the broker's access list names it."""

_CA_NAME: Final = "FAJMA device CA"
_CA_VALID: Final = timedelta(days=3650)
_VALID: Final = timedelta(days=730)
_RENEW_BEFORE: Final = timedelta(days=30)
# A broker or monitor whose clock is somewhat slow must still accept a new certificate.
_BACKDATED: Final = timedelta(days=1)
_DEVICE_ID: Final = re.compile(r"[0-9A-F]{12}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a certificate and its private key are (PEM)."""

    cert_file: Path
    key_file: Path


def ensure_ca(directory: Path, *, now: datetime | None = None) -> Credentials:
    """The authority of this directory, made if there is none.

    Args:
        directory: made with mode 0700 if it is missing.
        now: aware UTC time; the clock's if not given.

    Raises:
        InputError: ``ca_incomplete`` or ``ca_expired``: it must not be replaced silently, since
            every monitor trusts it.
    """
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = _files(directory, "ca")
    present = [path for path in (files.cert_file, files.key_file) if path.exists()]
    if not present:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(_CA_NAME)
        certificate = (
            _builder(name, name, key.public_key(), now, now + _CA_VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(files, certificate, key)
        return files
    if len(present) == 1:
        raise InputError(
            f"only {present[0].name} of the certificate authority is left in {directory}: "
            "restore the other file from the backup",
            code="ca_incomplete",
        )
    expires = _load(files)[0].not_valid_after_utc
    if expires - now < _RENEW_BEFORE:
        raise InputError(
            f"the certificate authority in {directory} ends on {expires:%Y-%m-%d}: "
            "move it away and enrol the monitors again",
            code="ca_expired",
        )
    return files


def issue_server(
    directory: Path, names: Sequence[str], *, now: datetime | None = None
) -> Credentials:
    """The broker's certificate.

    Args:
        directory: the authority's.
        names: host names and IP addresses that clients connect to; the first becomes the common
            name.
        now: aware UTC time; the clock's if not given.
    """
    alternatives = [_general_name(name) for name in names]
    return _issue(
        directory,
        "server",
        common_name=names[0],
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        alternatives=alternatives,
        now=now,
    )


def issue_device(
    directory: Path,
    device_id: str,
    *,
    authority: Credentials | None = None,
    now: datetime | None = None,
) -> Credentials:
    """A monitor's client certificate; its common name is what the broker calls the monitor.

    Args:
        directory: where to.
        device_id: MAC address as twelve upper-case hex digits, e.g. ``A4CF12F03B7E``.
        authority: who signs; the directory's own if not given.
        now: aware UTC time; the clock's if not given.

    Raises:
        InputError: ``bad_device_id``, ``bad_authority``.
    """
    if not _DEVICE_ID.fullmatch(device_id):
        raise InputError(
            "a monitor's id is its MAC address as twelve upper-case hex digits, "
            "for example A4CF12F03B7E",
            code="bad_device_id",
        )
    return _issue_client(directory, device_id, authority, now)


def issue_bridge(
    directory: Path,
    name: str = BRIDGE_NAME,
    *,
    authority: Credentials | None = None,
    now: datetime | None = None,
) -> Credentials:
    """The client certificate with which an ingest reads what the monitors send.

    Args:
        directory: where to.
        name: of the ingest (``bridges.mqtt_vitals.subscriber.client_id``).
        authority: who signs; the directory's own if not given.
        now: aware UTC time; the clock's if not given.

    Raises:
        InputError: ``bad_authority``.
    """
    return _issue_client(directory, name, authority, now)


def _issue_client(
    directory: Path, name: str, authority: Credentials | None, now: datetime | None
) -> Credentials:
    return _issue(
        directory,
        name,
        common_name=name,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        alternatives=[],
        authority=authority,
        now=now,
    )


def _issue(
    directory: Path,
    stem: str,
    *,
    common_name: str,
    usage: x509.ObjectIdentifier,
    alternatives: Sequence[x509.GeneralName],
    authority: Credentials | None = None,
    now: datetime | None,
) -> Credentials:
    now = now or datetime.now(UTC)
    if authority is None:
        ca_certificate, ca_key = _load(ensure_ca(directory, now=now))
    else:
        ca_certificate, ca_key = _load_authority(authority, now)
    files = _files(directory, stem)
    if _is_good(files, ca_certificate, common_name, alternatives, now):
        return files
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + _VALID, ca_certificate.not_valid_after_utc)
    builder = (
        _builder(_name(common_name), ca_certificate.subject, key.public_key(), now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    _write(files, builder.sign(ca_key, hashes.SHA256()), key)
    return files


def _is_good(
    files: Credentials,
    ca_certificate: x509.Certificate,
    common_name: str,
    alternatives: Sequence[x509.GeneralName],
    now: datetime,
) -> bool:
    """Whether what is there can be used again; broken leftovers count as absent."""
    try:
        certificate, key = _load(files)
        certificate.verify_directly_issued_by(ca_certificate)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    try:
        found = list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except x509.ExtensionNotFound:
        found = []
    ends = certificate.not_valid_after_utc
    return (
        certificate.public_key() == key.public_key()
        and certificate.subject == _name(common_name)
        and found == list(alternatives)
        # One that ends with the authority cannot be made to last longer.
        and (ends - now >= _RENEW_BEFORE or ends == ca_certificate.not_valid_after_utc)
    )


def _files(directory: Path, stem: str) -> Credentials:
    return Credentials(directory / f"{stem}.crt", directory / f"{stem}.key")


def _load(files: Credentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = x509.load_pem_x509_certificate(files.cert_file.read_bytes())
    key = serialization.load_pem_private_key(files.key_file.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(
            f"{files.key_file} is not a key on an elliptic curve, as ours are", code="bad_key"
        )
    return certificate, key


def _load_authority(
    files: Credentials, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """An authority that is not of our making.

    Raises:
        InputError: ``bad_authority``, ``bad_key``.
    """
    try:
        certificate, key = _load(files)
    except OSError as error:
        raise _bad_authority(f"{error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:  # TypeError: the key has a passphrase
        raise _bad_authority(
            f"{files.cert_file} and {files.key_file} are not a certificate and its key in PEM, "
            "without passphrase"
        ) from error
    if certificate.public_key() != key.public_key():
        raise _bad_authority(f"{files.key_file} is not the key of {files.cert_file}")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise _bad_authority(f"{files.cert_file} is no certificate authority") from None
    if not constraints.ca:
        raise _bad_authority(f"{files.cert_file} is no certificate authority")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise _bad_authority(f"{files.cert_file} is not valid today")
    return certificate, key


def _bad_authority(why: str) -> InputError:
    return InputError(
        f"{why}: give the authority that signs the monitors' certificates", code="bad_authority"
    )


def _write(
    files: Credentials, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(files.key_file, pem)
    write_private(files.cert_file, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
