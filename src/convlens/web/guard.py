"""What stands before every request: the names that are answered to, the token, safe headers."""

from __future__ import annotations

import hmac
from http.cookies import CookieError
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from convlens.web.address import Address

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors {ancestors}"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of every answer: no script but the server's own files, no inline script, no eval."""


class Guard:
    """Decides whether a request is answered.

    Args:
        address: where the page is served.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    def refusal(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Status and sentence for a request that is not answered, None for one that is."""
        if not self.address.knows_host(request.headers.get("Host")):
            return (
                421,
                "This page is not served under that name; open the address that was printed.",
            )
        origin = request.headers.get("Origin")
        foreign = _is_of_another_site(request) and not self._is_frame(request)
        if foreign or (origin is not None and not self._is_ours(origin)):
            return 403, "Pages of other sites may not read this one."
        if request.method not in ("GET", "HEAD"):
            return 405, "This page can only be read."
        if not self.has_token(request):
            return 403, "Open the address with its token, as it was printed when the page started."
        return None

    def has_token(self, request: HTTPServerRequest) -> bool:
        """Whether the cookie, or on the way in the address, holds the token."""
        if self.address.knows_token(_cookie(request, self.cookie)):
            return True
        given = request.query_arguments.get("token", [b""])[-1]
        return request.path == "/" and self.address.knows_token(given.decode("utf-8", "replace"))

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies are shared by all ports of a machine."""
        return f"convlens-token-{self.address.port}"

    @property
    def ancestors(self) -> str:
        """The pages that may hold this one in a frame, as a Content-Security-Policy has them."""
        return "http://localhost:* http://127.0.0.1:*" if self.address.frame_token else "'none'"

    def _is_frame(self, request: HTTPServerRequest) -> bool:
        """Whether it is for a frame in a notebook, whose page has another port.

        No cookie is needed: what the page in the frame then asks for is of the same origin.
        """
        token = self.address.frame_token
        given = request.query_arguments.get("frame", [b""])[-1]
        frame = request.headers.get("Sec-Fetch-Dest") == "iframe"
        return frame and bool(token) and hmac.compare_digest(given, token.encode())

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as a bracket that is not closed
            return False
        return parts.scheme == "http" and self.address.knows_host(parts.netloc)


def _is_of_another_site(request: HTTPServerRequest) -> bool:
    """Whether a page of another site, or of another port, asked for it without a person's click.

    A link may be clicked anywhere: that opens the page as a document of its own, which the other
    one cannot read. Browsers say so (W3C, Fetch Metadata Request Headers); other programs send
    nothing of the kind.
    """
    get = request.headers.get
    if get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
        return "Sec-Purpose" in request.headers  # fetched ahead, which any page may have asked for
    clicked = (get("Sec-Fetch-Mode"), get("Sec-Fetch-Dest"), get("Sec-Fetch-User"))
    return clicked != ("navigate", "document", "?1")


def _cookie(request: HTTPServerRequest, name: str) -> str:
    try:
        found = request.cookies.get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
