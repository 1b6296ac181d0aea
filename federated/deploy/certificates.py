"""The certificates and keys of a federation: made for a trial, checked before a start.

The SuperLink shows a server certificate that an authority has signed, and each SuperNode signs its
requests with an ECDSA key on the curve P-384, the only kind that Flower 1.41 takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from heliotrope.errors import ConfigError, RunDirectoryError

__all__ = [
    "CA_CERTIFICATE",
    "SERVER_CERTIFICATE",
    "SERVER_KEY",
    "address_of",
    "check_node_key",
    "check_server_certificate",
    "node_key",
    "write_certificates",
    "write_node_key",
]

CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY = "ca.crt", "server.pem", "server.key"
_VALID = timedelta(days=30)
_CLOCKS_APART = timedelta(minutes=5)


def write_certificates(folder: Path, hosts: Sequence[str], valid: timedelta = _VALID) -> None:
    """Write an authority's certificate, and a server's certificate and key, into `folder`.

    The authority's own key is not kept: nobody can sign another certificate with it.

    Parameters
    ----------
    folder
        Made if it is not there.
    hosts
        Names and addresses by which SuperNodes reach the SuperLink.
    valid
        How long from now on; negative: it has expired.
    """
    now = datetime.now(UTC)
    start, end = min(now, now + valid) - _CLOCKS_APART, now + valid
    ca_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca_name = _named("Heliotrope trial authority")

    def begun(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(ca_name)
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        return builder.not_valid_before(start).not_valid_after(end)

    authority = begun(ca_name, ca_key.public_key())
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    authority = authority.add_extension(_key_usage(signs_certificates=True), True)
    authority = authority.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False
    )
    server = begun(_named(hosts[0]), key.public_key())
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    server = server.add_extension(x509.SubjectAlternativeName(map(_general_name, hosts)), False)
    server = server.add_extension(_key_usage(signs_certificates=False), True)
    server = server.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    server = server.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in ((CA_CERTIFICATE, authority), (SERVER_CERTIFICATE, server)):
        signed = each.sign(ca_key, hashes.SHA384())
        (folder / name).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    _write_private(folder / SERVER_KEY, key, serialization.PrivateFormat.PKCS8)


def write_node_key(folder: Path, name: str) -> None:
    """Write the key pair of a SuperNode, `name`.key and `name`.pub, into `folder`."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(folder / f"{name}.key", key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    (folder / f"{name}.pub").write_bytes(public + b"\n")


def node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a SuperNode's private key; `ConfigError` if there is none that Flower takes."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is no private key of a SuperNode: {error}. Make one with "
            "ssh-keygen -t ecdsa -b 384, without a passphrase."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise ConfigError(
            f"{path} is no ECDSA key on the curve P-384, the only kind that Flower takes. Make "
            "one with ssh-keygen -t ecdsa -b 384."
        )
    return key


def check_node_key(path: Path) -> None:
    """Raise `ConfigError` unless the private key at `path` belongs to the public one beside it."""
    public = path.with_suffix(".pub")
    try:
        known = serialization.load_ssh_public_key(public.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{public} is no public key: {error}. Make the pair again.") from error
    if node_key(path).public_key() != known:
        raise ConfigError(
            f"{path} does not belong to {public}, by which the SuperLink knows the node: it would "
            "refuse it. Put the right key there, or register its public one."
        )


def check_server_certificate(folder: Path, host: str) -> None:
    """Raise `ConfigError` unless SuperNodes that reach `host` will trust the SuperLink there.

    Looked at are the signature of the authority, the validity today, the host names and whether
    the private key belongs to the certificate.
    """
    ca, server = (_certificate(folder / name) for name in (CA_CERTIFICATE, SERVER_CERTIFICATE))
    path = folder / SERVER_CERTIFICATE
    for where, each in ((folder / CA_CERTIFICATE, ca), (path, server)):
        _check_valid_now(where, each)
    try:
        server.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not signed by the authority in {folder / CA_CERTIFICATE}: SuperNodes would "
            "refuse it. Put the authority there that has signed it."
        ) from error
    hosts = _hosts(server)
    if not any(_matches(host, each) for each in hosts):
        raise ConfigError(
            f"{path} is for {', '.join(hosts) or 'no host'}, not for {host}: SuperNodes would "
            f"refuse it. Make a certificate for that host, such as with hosts={host}."
        )
    try:
        key = serialization.load_pem_private_key((folder / SERVER_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{folder / SERVER_KEY} is no private key: {error}. Put the key of {path} there."
        ) from error
    if key.public_key() != server.public_key():
        raise ConfigError(f"{folder / SERVER_KEY} is not the key of {path}. Put that one there.")


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no certificate: {error}. Name a folder with {CA_CERTIFICATE}, "
            f"{SERVER_CERTIFICATE} and {SERVER_KEY}, in PEM format."
        ) from error


def _check_valid_now(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise ConfigError(f"{path} has expired on {end:%Y-%m-%d %H:%M} UTC. Renew the certificate.")
    if now < start:
        raise ConfigError(
            f"{path} is valid only from {start:%Y-%m-%d %H:%M} UTC on. Set this machine's clock, "
            "or use another certificate."
        )


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _matches(host: str, name: str) -> bool:
    """Return whether a certificate for `name`, which may begin with `*.`, is for `host`."""
    if host.lower() == name.lower():
        return True
    wild, _, domain = name.lower().partition(".")  # a star stands for one label (RFC 9525, 6.3)
    return wild == "*" and bool(domain) and host.lower().partition(".")[2] == domain


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that `host` is; None of a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _general_name(host: str) -> x509.GeneralName:
    address = address_of(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(
    path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    """Write a private key that nobody else can read at any moment."""
    data = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        raise RunDirectoryError(
            f"{path} is there already: a private key is never overwritten. Choose another folder."
        ) from error
    path.write_bytes(data)
