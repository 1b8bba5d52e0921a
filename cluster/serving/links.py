"""Links that people open on another device: the address of this machine, and QR codes for a terminal and a page."""

import io
import socket

import segno

_UNUSED_ADDRESS = ("192.0.2.1", 9)
"""A documentation address (RFC 5737); connecting a UDP socket to it sends nothing."""
EVERY_ADDRESS = ("0.0.0.0", "::", "")
"""Hosts that mean all addresses of this machine."""


def own_address() -> str:
    """The address of this machine in its network; ``localhost`` without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_UNUSED_ADDRESS)
        except OSError:
            return "localhost"
        return str(probe.getsockname()[0])


def reachable(host: str) -> str:
    """The host to write into a link to a server that listens at ``host``."""
    found = own_address() if host in EVERY_ADDRESS else host
    return f"[{found}]" if ":" in found else found


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
