"""The one-time link to a page, and whether browsers trust its address."""

import ipaddress
import ssl
from pathlib import Path

from cluster.artifacts.errors import StageError


def link(address: str, token: str) -> str:
    """The link to the page at ``address``, for example ``https://host:port``."""
    return f"{address.rstrip('/')}/?t={token}"


def is_secure(address: str) -> bool:
    """Whether browsers allow threads and offline storage: https, or an address of the same device."""
    scheme, _, rest = address.partition("://")
    host = rest.partition("/")[0].rpartition(":")[0] or rest
    try:
        local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = host == "localhost"
    return scheme == "https" or local


def tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """The settings of an https server; None without a certificate.

    Raises:
        StageError: only one of both is set, or they cannot be read.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise StageError("https needs both: set placement.certificate and placement.key to PEM files")
    for path in (certificate, key):
        if not Path(path).is_file():
            raise StageError(f"{path} does not exist: set placement.certificate and placement.key to PEM files")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise StageError(f"{certificate} and {key} are not a certificate and its key in PEM: {error.reason}") from None
    return context
