"""The one-time link to a page, as text and as a QR code."""

import io
import ipaddress
import socket
import ssl
from pathlib import Path

import segno

from cluster.artifacts.errors import StageError

_UNUSED_ADDRESS = ("192.0.2.1", 9)
"""A documentation address (RFC 5737); connecting a UDP socket to it sends nothing."""


def own_address() -> str:
    """The address of this machine in its network; ``localhost`` without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_UNUSED_ADDRESS)
        except OSError:
            return "localhost"
        return str(probe.getsockname()[0])


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


def terminal(text: str) -> list[str]:
    """The lines of a QR code for a dark terminal: light squares are drawn, two to a character."""
    light = [[not dark for dark in line] for line in segno.make(text, error="l", micro=False).matrix_iter(border=2)]
    if len(light) % 2:
        light.append([True] * len(light[0]))
    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    return [
        "".join(blocks[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(light[::2], light[1::2], strict=True)
    ]


def svg(text: str) -> str:
    """The QR code as an SVG image, with the white border that a camera needs on a dark page."""
    buffer = io.BytesIO()
    segno.make(text, error="m", micro=False).save(buffer, kind="svg", scale=4, border=4, light="white")
    return buffer.getvalue().decode()
