"""Where the page is served, and whose requests are answered."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass, field

from convlens.errors import ArgumentError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

MIN_TOKEN = 16
"""Characters of a token: fewer could be guessed."""


@dataclass(frozen=True)
class Address:
    """An address and who may use it.

    Attributes:
        host: the address that the server binds to.
        port: its port; 0 lets the system choose a free one.
        token: what a browser has to know; empty on loopback if none is asked for.
        names: further names by which the machine is reached, for a ``host`` that others can reach.
        frame_token: what the address of a frame in a notebook has to hold; empty if no other page
            may hold this one in a frame.
    """

    host: str = "127.0.0.1"
    port: int = 5006
    token: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    frame_token: str = field(default="", repr=False)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or _is_loopback(self.host)

    @property
    def url(self) -> str:
        """What to open, without the token."""
        host = self.host
        if host in ("", "0.0.0.0", "::"):
            host = self.names[0] if self.names else socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def url_with_token(self) -> str:
        """What to open the first time; the page then keeps the token in a cookie."""
        return f"{self.url}?token={self.token}" if self.token else self.url

    def knows_host(self, header: str | None) -> bool:
        """Whether a Host header, or the part of an Origin after its scheme, is one of ours.

        A page of another site that has its name resolve to this machine ("DNS rebinding") sends
        that name. Bound to every address, any of them may be used as a number, which cannot be
        made to resolve to something else; names must have been given.
        """
        name, port = _split(header or "")
        if port != self.port:
            return False
        if self.loopback:
            return name in {*LOOPBACK, self.host}
        if name in {self.host, f"[{self.host}]", *self.names, socket.gethostname().lower()}:
            return True
        return self.host in ("", "0.0.0.0", "::") and _is_number(name)

    def knows_token(self, given: str | None) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        return not self.token or hmac.compare_digest((given or "").encode(), self.token.encode())


def make_address(
    host: str = "127.0.0.1",
    port: int = 5006,
    token: str | None = None,
    names: tuple[str, ...] = (),
) -> Address:
    """Check where to serve.

    Args:
        host: the address to bind to.
        port: its port, 0 for a free one.
        token: what a browser must know, at least 16 characters; ``"auto"`` makes one. Must be given
            where others can reach the address.
        names: names by which others reach this machine.

    Raises:
        ArgumentError: if the port is none, others could reach the page without a token, or the
            token is short.
    """
    if not 0 <= port <= 65535:
        raise ArgumentError(f"port must be a number from 0 to 65535, got {port}.")
    if token == "auto":
        token = secrets.token_urlsafe(24)
    if token is not None and not _is_plain(token):
        raise ArgumentError(
            "token has a sign that an address cannot hold as it is; give letters (a to z), digits, "
            "- or _ only, or 'auto' to have one made."
        )
    if token is not None and len(token) < MIN_TOKEN:
        raise ArgumentError(
            f"token has {len(token)} characters; give at least {MIN_TOKEN} letters, digits, - or "
            "_, or 'auto' to have one made."
        )
    address = Address(host, port, token or "", tuple(name.lower() for name in names))
    if not address.loopback and not token:
        raise ArgumentError(
            f"address={host!r} can be reached by other machines; give a token too, such as "
            "--token auto, or leave the address at 127.0.0.1."
        )
    return address


def _split(header: str) -> tuple[str, int]:
    """Name and port of a Host header; −1 for a port that is none."""
    name, colon, port = header.strip().lower().rpartition(":")
    if not colon or port.endswith("]"):
        return header.strip().lower(), 80
    return name, int(port) if re.fullmatch("[0-9]{1,5}", port) else -1


def _is_plain(token: str) -> bool:
    return all(sign.isascii() and (sign.isalnum() or sign in "-_") for sign in token)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_number(host) and ipaddress.ip_address(host).is_loopback
