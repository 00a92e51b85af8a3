"""The TLS side of the listener: certificate, key, and whose certificates clients must show; or one line why not.

TLS 1.2 and newer, with Python's own choice of ciphers. Knows no socket.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from service.knobs import SettingsError
from service.settings import Settings


class _NoPassword(Exception):
    """The key is encrypted, and nobody has said how."""


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """None when no certificate is given. Raises SettingsError when what is given cannot be used."""
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if certificate is None:
        for name in ("tls_key_file", "tls_key_password_file", "tls_client_ca_file"):
            if getattr(settings, name) is not None:
                raise SettingsError(f"--{name.replace('_', '-')} needs --tls-cert-file, the server's own certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, certificate, key, settings.tls_key_password_file)
    if settings.tls_client_ca_file is not None:
        _ask_clients(context, settings.tls_client_ca_file)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, password_file: Path | None) -> None:
    _readable("--tls-cert-file", certificate)
    if key is not None:
        _readable("--tls-key-file", key)
    where = f"--tls-key-file: {str(key)!r}" if key else f"--tls-cert-file: {str(certificate)!r}"

    is_encrypted = False

    def password() -> bytes:
        nonlocal is_encrypted
        is_encrypted = True
        # Without an answer of ours OpenSSL would ask on the terminal, and wait.
        if password_file is None:
            raise _NoPassword
        return _readable("--tls-key-password-file", password_file).splitlines()[0].strip()

    try:
        context.load_cert_chain(certificate, key, password)
    except _NoPassword:
        raise SettingsError(f"{where} is encrypted; give its password with --tls-key-password-file") from None
    except ssl.SSLError as error:
        if is_encrypted:
            raise SettingsError(f"{where} is not decrypted by the password in {str(password_file)!r}") from error
        raise SettingsError(_explain(error, str(certificate), where)) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where} cannot be used: {error}") from error


def _explain(error: ssl.SSLError, certificate: str, where: str) -> str:
    """OpenSSL names what went wrong, but not in which of the files."""
    reason = error.reason or str(error)
    if reason == "KEY_VALUES_MISMATCH":
        return f"{where} is not the key of the certificate in {certificate!r}"
    return f"{certificate!r} and its key cannot be used ({reason}): certificate and key must be PEM; {where}"


def _ask_clients(context: ssl.SSLContext, authorities: Path) -> None:
    """Mutual TLS: who shows no certificate of these authorities is not talked to."""
    _readable("--tls-client-ca-file", authorities)
    try:
        context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"--tls-client-ca-file: {str(authorities)!r} holds no certificate in PEM") from error
    context.verify_mode = ssl.CERT_REQUIRED


def _readable(flag: str, path: Path) -> bytes:
    """Its content: OpenSSL's own message about a missing file does not name it. Raises SettingsError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag}: {str(path)!r} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise SettingsError(f"{flag}: {str(path)!r} is empty")
    return content
