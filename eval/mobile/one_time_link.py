"""The one-time link to a page, as text and as a picture that a phone's camera reads."""

import io
import ipaddress
import socket
import ssl
from pathlib import Path

import segno

from cluster.artifacts.errors import StageError

_SOMEWHERE = ("192.0.2.1", 9)
"""An address of no machine (RFC 5737): asking for the way to it sends nothing."""


def own_address() -> str:
    """The address of this machine that others in its network see; ``localhost`` where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(_SOMEWHERE)
        except OSError:
            return "localhost"
        return str(asked.getsockname()[0])


def link(address: str, token: str) -> str:
    """``address`` is where the page is: ``https://host:port``."""
    return f"{address.rstrip('/')}/?t={token}"


def is_secure(address: str) -> bool:
    """Whether browsers trust the connection with threads and with keeping the page: https, or this very device."""
    scheme, _, rest = address.partition("://")
    host = rest.partition("/")[0].rpartition(":")[0] or rest
    try:
        local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = host == "localhost"
    return scheme == "https" or local


def tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """What a server needs for https; None without a certificate.

    Raises:
        StageError: one is there without the other, or they cannot be read.
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
        raise StageError(f"{certificate} and {key} are no certificate and its key in PEM: {error.reason}") from None
    return context


def terminal(text: str) -> list[str]:
    """The lines of a QR code: light squares are drawn, so that it reads on a dark terminal; two squares a character."""
    light = [[not dark for dark in line] for line in segno.make(text, error="l", micro=False).matrix_iter(border=2)]
    if len(light) % 2:
        light.append([True] * len(light[0]))
    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    return [
        "".join(blocks[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(light[::2], light[1::2], strict=True)
    ]


def picture(text: str, path: Path) -> None:
    """The same as an SVG file."""
    path.write_text(svg(text), encoding="utf-8")


def svg(text: str) -> str:
    """The same as an SVG image, with a white border, which a camera needs on a dark page."""
    buffer = io.BytesIO()
    segno.make(text, error="m", micro=False).save(buffer, kind="svg", scale=4, border=4, light="white")
    return buffer.getvalue().decode()
